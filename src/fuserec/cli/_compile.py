"""`fuserec compile`: the CPU search, compiled where the package is installed in place of where it first runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import JsonFlag, app


@app.command("compile")
def compile_search(
    target_cpu: Annotated[
        list[str] | None,
        typer.Option(help="amx, vnni (AVX-512) or avx2; may be given several times. All of them by default."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep it in; set FUSEREC_COMPILED to it where it runs. The installation's by default."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compile the CPU search for kinds of processors, this machine's or not, so that no first start waits for it.

    What is compiled already from the same sources, by content, is kept.
    """
    from fuserec.kernels.compiling import compile_level, levels_named

    done = []
    for level in levels_named(target_cpu or []):
        if not as_json:
            typer.echo(f"{level.name}: compiling (about a minute)", err=True)
        compiled = compile_level(level, to)
        done.append(dataclasses.asdict(compiled))
        if not as_json:
            news = f"{compiled.functions} functions in {compiled.seconds} s" if compiled.functions else "unchanged"
            typer.echo(f"{level.name}: {news}, {compiled.folder}")
    if as_json:
        typer.echo(json.dumps(done, indent=1))
