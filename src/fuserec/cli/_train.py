"""`fuserec train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from fuserec.cli._app import JsonFlag, app

# Written out, as the recipes themselves would import torch before a word of help is printed; a test compares.
RECIPE_NAMES: Final = "two-tower, mf, sasrec, gru4rec, lstm, conv, bert4rec, ranker-mlp, ranker-attention or ranker-dcn"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=f"What to train: {RECIPE_NAMES}.")],
    data: Annotated[Path, typer.Option(help="Folder with interactions and items, Parquet or CSV.")],
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Most epochs to train; early stopping may take fewer.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples in one step: histories, or interactions for mf.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same checkpoint.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any option of the recipe; repeatable. `--set help` lists them."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recommender and write its checkpoint, with what it scored on held-out interactions."""
    from fuserec import display
    from fuserec.models.checkpoint import check_destination
    from fuserec.train.data import read_folder
    from fuserec.train.recipes import get_recipe, parse_settings
    from fuserec.train.run import Run

    chosen = get_recipe(recipe)
    given = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    named = {name: value for name, value in given.items() if value is not None}
    options = chosen.options({**parse_settings(chosen, settings or []), **named})
    check_destination(out)  # now, not after minutes of training
    checkpoint = chosen.train(read_folder(data), options, Run())
    checkpoint.save(out)
    if as_json:
        typer.echo(json.dumps(checkpoint.metrics, indent=2))
        return
    display.training(checkpoint.metrics, out)
    typer.echo(f"next: fuserec export {out} --repository build/repository")
