"""`fuserec explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import JsonFlag, app


@app.command()
def explain(
    item: Annotated[int, typer.Option(help="Item whose score is explained.")],
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[CHECKPOINT|REPOSITORY]", help="A folder; without one, the server at --url."),
    ] = None,
    user: Annotated[int | None, typer.Option("--user", help="User id; leave out for somebody unknown.")] = None,
    history: Annotated[
        list[int] | None, typer.Option(help="Item the user had, oldest first; repeatable. What is stored by default.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="leave-one-out, or of a checkpoint integrated-gradients.")
    ] = "leave-one-out",
    url: Annotated[
        str | None,
        typer.Option(help="host:port for gRPC, http://host:port for HTTP.", show_default="127.0.0.1:8001"),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(help="Repository or items.parquet with the titles; known for a folder and a server here."),
    ] = None,
    timeout_ms: Annotated[float, typer.Option(help="Milliseconds the call of a server may take.")] = 1_000.0,
    as_json: JsonFlag = False,
) -> None:
    """Show which items of a history moved a recommendation, and by how much."""
    from fuserec.errors import UsageError
    from fuserec.explainers import explain_by_checkpoint, explain_by_repository, explain_by_server

    if source is not None and url is not None:
        raise UsageError(f"{source} and --url {url} came together; expected one of them")
    if source is not None and (source / "config.json").is_file():
        explained = explain_by_checkpoint(source, user, history, item, method)
    elif method != "leave-one-out":
        raise UsageError(f"--method came as {method!r}; repositories and servers know leave-one-out alone")
    elif source is not None:
        explained = explain_by_repository(source, user, history, item)
    else:
        explained = explain_by_server(url or "127.0.0.1:8001", user, history, item, timeout_ms)
    document = {
        "user_id": user,
        "item_id": item,
        "method": method,
        "score": explained.score,
        "baseline": explained.baseline,
        "history": [
            {"item_id": item_id, "contribution": contribution}
            for item_id, contribution in zip(explained.item_ids.tolist(), explained.contributions.tolist(), strict=True)
        ],
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    from fuserec import display_report
    from fuserec.catalogue import Catalogue
    from fuserec.serve.state import repository_of

    if items is None:
        items = source or repository_of(url or "localhost:8001")
    if items is not None and (items / "config.json").is_file():
        items = items / "items.parquet"
    display_report.explanation(document, Catalogue.open(items) if items else None)
