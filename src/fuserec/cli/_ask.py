"""`fuserec recommend`: questions to a running server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import JsonFlag, app


@app.command()
def recommend(
    user: Annotated[int | None, typer.Option("--user", help="User id; leave out for somebody unknown.")] = None,
    history: Annotated[list[int] | None, typer.Option(help="Item the user had, oldest first; repeatable.")] = None,
    exclude: Annotated[list[int] | None, typer.Option(help="Item that must not come back; repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    url: Annotated[str, typer.Option(help="host:port for gRPC, http://host:port for HTTP.")] = "127.0.0.1:8001",
    items: Annotated[
        Path | None,
        typer.Option(help="Repository or items.parquet with the titles; known for a server of this machine."),
    ] = None,
    timeout_ms: Annotated[float, typer.Option(help="Milliseconds the call may take in all.")] = 1_000.0,
    log: Annotated[
        Path | None, typer.Option(help="File to append the answer to, as a JSON line for `fuserec data feedback`.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a running server for recommendations and print them with their titles."""
    from fuserec.client import Recommender

    with Recommender(url, timeout_ms=timeout_ms) as recommender:
        answer = recommender.recommend(user_id=user, history=history or (), exclude=exclude or (), k=k)
    if log is not None:
        from fuserec.train.served import log_answer

        ids = [item_id for item_id, _ in answer]
        log_answer(log, user_id=user, timestamp=int(time.time()), item_ids=ids, model_version=answer.model_version)
    if as_json:
        document = {
            "items": [{"item_id": item_id, "score": score} for item_id, score in answer],
            "model_version": answer.model_version,
            "fallback": answer.fallback,
            "ignored": answer.ignored,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    from fuserec import display
    from fuserec.catalogue import Catalogue
    from fuserec.serve.state import repository_of

    source = items or repository_of(int(url.rpartition(":")[2]))
    display.recommendations(answer, Catalogue.open(source) if source else None)
