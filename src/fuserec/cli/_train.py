"""`fuserec train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fuserec.cli._app import JsonFlag, app
from fuserec.errors import UsageError

if TYPE_CHECKING:
    from fuserec.train.run import Privacy

# Written out, as the recipes themselves would import torch before a word of help is printed; a test compares.
RECIPE_LINES: Final = {
    "two-tower": "contrastive two-tower over user ids, histories and item features (InfoNCE, in-batch negatives, logQ)",
    "mf": "matrix factorization by BPR",
    "sasrec": "causal self-attention over the history",
    "gru4rec": "GRU cells over the history",
    "lstm": "LSTM cells over the history",
    "conv": "dilated causal convolutions (NextItNet)",
    "bert4rec": "self-attention both ways, guessing masked items",
    "ranker-mlp": "re-ranks candidates: MLP over user, item and features",
    "ranker-attention": "re-ranks candidates: each of them looks at the history (target attention)",
    "ranker-dcn": "re-ranks candidates: cross network (DCN-v2)",
}
RECIPE_HELP: Final = "What to train:\n\n" + "\n\n".join(f"{name}: {line}" for name, line in RECIPE_LINES.items())

MACHINE: Final = "How it is computed"
WATCH: Final = "Watching, interrupting and resuming"
PRIVATE: Final = "Differential privacy"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=RECIPE_HELP)],
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
    accumulate: Annotated[
        int, typer.Option(min=1, help="Batches whose gradients make one step.", rich_help_panel=MACHINE)
    ] = 1,
    precision: Annotated[
        str, typer.Option(help="32-true, bf16-mixed, or with a GPU 16-mixed.", rich_help_panel=MACHINE)
    ] = "32-true",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.", rich_help_panel=MACHINE)] = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Processes, a device each, that share every batch.", rich_help_panel=MACHINE)
    ] = 1,
    strategy: Annotated[
        str, typer.Option(help="How devices work together: auto or ddp.", rich_help_panel=MACHINE)
    ] = "auto",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder to write TensorBoard's event files into.", rich_help_panel=WATCH)
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder to keep the state in, after every epoch.", rich_help_panel=WATCH)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on from the state in this folder, all other options equal.", rich_help_panel=WATCH),
    ] = None,
    private_epsilon: Annotated[
        float | None,
        typer.Option(
            help="Train privately, for users, spending this much; sequential recipes.", rich_help_panel=PRIVATE
        ),
    ] = None,
    private_delta: Annotated[
        float | None, typer.Option(help="How likely the promise may fail; 1e-5.", rich_help_panel=PRIVATE)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Length a user's gradient is cut to; 1.", rich_help_panel=PRIVATE)
    ] = None,
    private_windows: Annotated[
        int | None, typer.Option(min=1, help="Most windows of a user in a step; 4.", rich_help_panel=PRIVATE)
    ] = None,
) -> None:
    """Train a recommender and write its checkpoint, with what it scored on held-out interactions."""
    from fuserec import display
    from fuserec.models.checkpoint import check_destination
    from fuserec.train.data import read_folder
    from fuserec.train.recipes import get_recipe, parse_settings
    from fuserec.train.run import Run, TrainerOptions, is_first_process

    chosen = get_recipe(recipe)
    given = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    named = {name: value for name, value in given.items() if value is not None}
    options = chosen.options({**parse_settings(chosen, settings or []), **named})
    trainer = TrainerOptions(accumulate, precision, accelerator, devices, strategy, tensorboard, checkpoints, resume)
    run = Run(trainer=trainer, privacy=_privacy(private_epsilon, private_delta, clip, private_windows))
    check_destination(out)  # now, not after minutes of training
    checkpoint = chosen.train(read_folder(data), options, run)
    if not is_first_process():
        return
    checkpoint.save(out)
    if as_json:
        typer.echo(json.dumps(checkpoint.metrics, indent=2))
        return
    display.training(checkpoint.metrics, out)
    typer.echo(f"next: fuserec export {out} --repository build/repository")


def _privacy(epsilon: float | None, delta: float | None, clip: float | None, windows: int | None) -> Privacy | None:
    from fuserec.train.run import Privacy

    given: dict[str, Any] = {"delta": delta, "clip": clip, "windows": windows}
    named = {name: value for name, value in given.items() if value is not None}
    if epsilon is not None:
        return Privacy(epsilon, **named)
    if named:
        raise UsageError(
            f"{', '.join(named)} of private training came without --private-epsilon; expected it with them"
        )
    return None
