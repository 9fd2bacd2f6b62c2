"""`fuserec top`: what a server is doing."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Annotated, Any

import typer

from fuserec.cli._app import JsonFlag, app


@app.command()
def top(
    url: Annotated[str, typer.Argument(help="Metrics port of a server.")] = "http://127.0.0.1:8002",
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval and end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a server is doing: requests, latencies, queue, batches, what is tried. Ctrl-C ends it."""
    from rich.live import Live

    from fuserec import display_top
    from fuserec.terminal import out
    from fuserec.top import Scrape, View, view

    before = Scrape.fetch(url)

    def look() -> View:
        nonlocal before
        time.sleep(interval)
        after = Scrape.fetch(url)
        seen = view(before, after)
        before = after
        return seen

    if as_json:
        while True:
            typer.echo(json.dumps(_plain(dataclasses.asdict(look()))))
            if once:
                return
    if once:
        display_top.show(look())
        return
    try:
        with Live(display_top.waiting(url), console=out, screen=False, auto_refresh=False) as live:
            while True:
                live.update(display_top.screen(look()), refresh=True)
    except KeyboardInterrupt:
        return


def _plain(value: Any) -> Any:
    """Return a document without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
