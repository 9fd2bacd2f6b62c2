"""`fuserec data`: fetch and prepare what `fuserec train` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import app

data_app = typer.Typer(help="Fetch data sets as the Parquet files that `fuserec train` reads.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("movielens-100k")
def data_movielens_100k(
    out: Annotated[Path, typer.Option(help="Folder to write interactions.parquet and items.parquet into.")],
) -> None:
    """Fetch MovieLens-100K: 100,000 ratings of 1,682 films by 943 users."""
    from fuserec import display
    from fuserec.train.movielens import write_movielens_100k

    with display.steps() as on_step:
        write_movielens_100k(out, progress=on_step)
    typer.echo(f"wrote {out / 'interactions.parquet'} and {out / 'items.parquet'}")


@data_app.command("chatterbot")
def data_chatterbot(
    out: Annotated[Path, typer.Option(help="Folder to write dialogues.parquet into.")],
    language: Annotated[
        list[str] | None, typer.Option(help="As the corpus names it; repeatable. English by default.")
    ] = None,
) -> None:
    """Fetch the ChatterBot corpus: some 1,100 short English dialogues for `fuserec train dialogue`."""
    from fuserec import display
    from fuserec.train.chatterbot import write_chatterbot

    with display.steps() as on_step:
        write_chatterbot(out, language or ("english",), progress=on_step)
    typer.echo(f"wrote {out / 'dialogues.parquet'}")
