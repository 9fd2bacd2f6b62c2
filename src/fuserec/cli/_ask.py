"""`fuserec recommend` and `fuserec rank`: questions to a running server."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from fuserec.cli._app import JsonFlag, app
from fuserec.errors import UsageError

if TYPE_CHECKING:
    from fuserec.catalogue import Catalogue

T = TypeVar("T")
UserOption = Annotated[int | None, typer.Option("--user", help="User id; leave out for somebody unknown.")]
HistoryOption = Annotated[list[int] | None, typer.Option(help="Item the user had, oldest first; repeatable.")]
UrlOption = Annotated[str, typer.Option(help="host:port for gRPC, http://host:port for HTTP.")]
ItemsOption = Annotated[
    Path | None, typer.Option(help="Repository or items.parquet with the titles; known for a server of this machine.")
]
TimeoutOption = Annotated[float, typer.Option(help="Milliseconds the call may take in all.")]


@app.command()
def recommend(
    user: UserOption = None,
    history: HistoryOption = None,
    exclude: Annotated[list[int] | None, typer.Option(help="Item that must not come back; repeatable.")] = None,
    allow: Annotated[list[int] | None, typer.Option(help="The only items that may come back; repeatable.")] = None,
    boost: Annotated[
        list[str] | None, typer.Option(help="CATEGORY=NUMBER added to the scores of its items; repeatable.")
    ] = None,
    cap: Annotated[
        list[str] | None, typer.Option(help="CATEGORY=N items of it at most, *=N of each other one; repeatable.")
    ] = None,
    diversity: Annotated[float, typer.Option(help="0, the best scores, to 1, items as unlike as can be.")] = 0.0,
    text: Annotated[
        str | None, typer.Option(help="What the user is after, in place of who they are; for models that read texts.")
    ] = None,
    history_only: Annotated[
        bool, typer.Option("--history-only", help="Leave what the server has stored of the user out of account.")
    ] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    url: UrlOption = "127.0.0.1:8001",
    items: ItemsOption = None,
    timeout_ms: TimeoutOption = 1_000.0,
    log: Annotated[
        Path | None, typer.Option(help="File to append the answer to, as a JSON line for `fuserec data feedback`.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a running server for recommendations and print them with their titles."""
    from fuserec.client import Recommender, Rules

    try:
        rules = Rules(_table("--boost", boost, float), _table("--cap", cap, int), diversity)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with Recommender(url, timeout_ms=timeout_ms) as recommender:
        answer = recommender.recommend(
            user_id=user,
            history=history or (),
            exclude=exclude or (),
            allow=allow or (),
            rules=rules,
            text=text,
            history_only=history_only,
            k=k,
        )
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

    display.recommendations(answer, catalogue_of(items, url))


@app.command()
def rank(
    candidates: Annotated[list[int], typer.Argument(help="Items to put in order.")],
    user: UserOption = None,
    history: HistoryOption = None,
    history_only: Annotated[
        bool, typer.Option("--history-only", help="Leave what the server has stored of the user out of account.")
    ] = False,
    url: UrlOption = "127.0.0.1:8001",
    items: ItemsOption = None,
    timeout_ms: TimeoutOption = 1_000.0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a running server, whose repository has a ranker, to put items in order for a user."""
    from fuserec.client import Recommender

    with Recommender(url, timeout_ms=timeout_ms) as recommender:
        answer = recommender.rank(candidates=candidates, user_id=user, history=history or (), history_only=history_only)
    if as_json:
        ratings = [None if math.isnan(rating) else rating for rating in answer.ratings.tolist()]
        rows = [
            {"item_id": item_id, "score": score, "rating": rating}
            for (item_id, score), rating in zip(answer, ratings, strict=True)
        ]
        document = {"items": rows, "model_version": answer.model_version, "ignored": answer.ignored}
        typer.echo(json.dumps(document, indent=2))
        return
    from fuserec import display

    display.ranked(answer, catalogue_of(items, url))


def _table(option: str, settings: list[str] | None, number: Callable[[str], T]) -> dict[str, T]:
    """Read `CATEGORY=NUMBER` settings."""
    table = {}
    for setting in settings or []:
        category, _, text = setting.rpartition("=")
        try:
            table[category] = number(text)
        except ValueError:
            raise UsageError(f"{option} came as {setting!r}, expected CATEGORY=NUMBER") from None
    return table


def catalogue_of(items: Path | None, url: str) -> Catalogue | None:
    """Return the titles: from where the user says, else from the repository that a server of this machine serves."""
    from fuserec.catalogue import Catalogue
    from fuserec.serve.state import repository_of

    source = items or repository_of(url)
    return Catalogue.open(source) if source else None
