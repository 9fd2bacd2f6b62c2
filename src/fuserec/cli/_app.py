"""The command line itself: the application that the other modules of this package add their commands to."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from fuserec import __version__

# Frames are for terminals; a pipe, a file and TERM=dumb get plain lines.
_IS_TERMINAL = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

app = typer.Typer(
    rich_markup_mode="rich" if _IS_TERMINAL else None,
    help="Trained recommender checkpoints to quantized engines, served by NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fuserec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """Trained recommender checkpoints to quantized engines, served by NVIDIA Triton."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("fuserec").setLevel(logging.INFO if verbose else logging.WARNING)
