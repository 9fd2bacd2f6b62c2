"""`fuserec train`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fuserec.cli import INTERRUPTED
from fuserec.cli._app import JsonFlag, app
from fuserec.errors import UsageError

if TYPE_CHECKING:
    from fuserec.train.recipes import Recipe
    from fuserec.train.run import Privacy
    from fuserec.train.start import Start

# Written out, as the recipes themselves would import torch before a word of help is printed; a test compares.
RECIPE_LINES: Final = {
    "two-tower": "contrastive two-tower over user ids, histories and item features (InfoNCE, in-batch negatives, logQ)",
    "mf": "matrix factorization by BPR",
    "sasrec": "causal self-attention over the history",
    "gru4rec": "GRU cells over the history",
    "lstm": "LSTM cells over the history",
    "conv": "dilated causal convolutions (NextItNet)",
    "bert4rec": "self-attention both ways, guessing masked items",
    "text": "pretrained text encoder over item texts, tuned on histories; knows new items",
    "ranker-mlp": "re-ranks candidates: MLP over user, item and features",
    "ranker-attention": "re-ranks candidates: each of them looks at the history (target attention)",
    "ranker-dcn": "re-ranks candidates: cross network (DCN-v2)",
    "ranker-text": "re-ranks few candidates: history and candidate read as one text",
    "dialogue": "the conversation so far to a reply from a list, both as text",
}
TAUGHT: Final = "distill"
ALL_LINES: Final = RECIPE_LINES | {
    TAUGHT: "a small model taught by a trained one: --teacher CHECKPOINT --student RECIPE"
}
RECIPE_HELP: Final = "What to train:\n\n" + "\n\n".join(f"{name}: {line}" for name, line in ALL_LINES.items())

HELP: Final = "help"  # as in --set help

TASKS: Final = "Several tasks, a teacher, or an earlier checkpoint"
MACHINE: Final = "How it is computed"
WATCH: Final = "Watching, interrupting and resuming"
PRIVATE: Final = "Differential privacy"


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help=RECIPE_HELP + "\n\nLeft out with --continue and --from.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with interactions and items, or dialogues; Parquet or CSV. Required.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the checkpoint into. Required.")] = None,
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
    tasks: Annotated[
        str | None,
        typer.Option(help="What a ranker learns: next-item,click,rating or some of them.", rich_help_panel=TASKS),
    ] = None,
    task_weights: Annotated[
        str | None, typer.Option(help="Weights of the tasks' losses, such as 1,0.5,0.1.", rich_help_panel=TASKS)
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Checkpoint that teaches, with distill.", rich_help_panel=TASKS)
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Recipe of the model that is taught, with distill.", rich_help_panel=TASKS)
    ] = None,
    continued: Annotated[
        Path | None,
        typer.Option(
            "--continue",
            help="Checkpoint to go on from; --data is what happened since, or all of it.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    transferred: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Checkpoint of another catalogue; ids are learned anew, all else is kept.",
            rich_help_panel=TASKS,
        ),
    ] = None,
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
    from fuserec.train.ranking import task_options
    from fuserec.train.recipes import option_table, parse_settings
    from fuserec.train.run import Interrupt, Run, TrainerOptions, is_first_process
    from fuserec.train.start import read_since

    start = _start(continued, transferred)
    chosen = _recipe(recipe, teacher, student, start)
    if HELP in (settings or []):
        display.settings(option_table(chosen))
        return
    if data is None or out is None:
        raise UsageError(f"{'--data' if data is None else '--out'} is missing; `fuserec train --help` tells what it is")
    if start is not None and chosen.read is not read_folder:
        raise UsageError("--continue and --from are for interactions; this recipe can only be trained anew")
    given = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    named = {name: value for name, value in given.items() if value is not None}
    asked = {**task_options(tasks, task_weights), **parse_settings(chosen, settings or []), **named}
    options = chosen.options({**(start.options(chosen.config_type) if start else {}), **asked})
    trainer = TrainerOptions(accumulate, precision, accelerator, devices, strategy, tensorboard, checkpoints, resume)
    privacy = _privacy(private_epsilon, private_delta, clip, private_windows)
    check_destination(out)  # now, not after minutes of training
    dataset = read_since(start.checkpoint, data) if start and start.keep_ids else chosen.read(data)
    interrupt = Interrupt(lambda best: _keep(best, out))
    run = Run(trainer=trainer, privacy=privacy, start=start, interrupt=interrupt)
    try:
        checkpoint = chosen.train(dataset, options, run)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {out} was not written{_resumable(trainer.state_folder)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not is_first_process():
        return
    checkpoint.save(out)
    if as_json:
        typer.echo(json.dumps(checkpoint.metrics, indent=2))
    else:
        display.training(checkpoint.metrics, out)
        typer.echo(f"next: fuserec export {out} --repository build/repository")
    if interrupt.happened:
        typer.echo(f"interrupted: {out} is its best epoch until then{_resumable(trainer.state_folder)}", err=True)
        raise typer.Exit(INTERRUPTED)


def _keep(best: str, out: Path) -> bool:
    """Ask whether the best epoch so far becomes the checkpoint; without anybody to ask, it does."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        typer.echo(f"interrupted: {best}; it is kept as {out}", err=True)
        return True
    try:
        return typer.confirm(f"interrupted: {best}. Keep it as {out}?", default=True, err=True)
    except typer.Abort:  # Ctrl-C again
        return False


def _resumable(folder: Path | None) -> str:
    if folder is None:
        return "; a run with --checkpoints FOLDER can be resumed"
    return f"; the same command with --resume {folder} goes on after the last whole epoch"


def _start(continued: Path | None, transferred: Path | None) -> Start | None:
    from fuserec.models.checkpoint import Checkpoint
    from fuserec.train.start import Start

    if continued and transferred:
        raise UsageError("--continue and --from came together; expected one of them")
    folder = continued or transferred
    return None if folder is None else Start(Checkpoint.load(folder), keep_ids=continued is not None)


def _recipe(name: str | None, teacher: Path | None, student: str | None, start: Start | None) -> Recipe:
    """Return the recipe that was asked for; where training starts from a checkpoint, the one that made it."""
    from fuserec.models.checkpoint import Checkpoint
    from fuserec.train.recipes import distilled, get_recipe

    if name == TAUGHT:
        if teacher is None or student is None:
            raise UsageError("distill came without --teacher CHECKPOINT or --student RECIPE; expected both")
        return distilled(student, Checkpoint.load(teacher))
    if teacher is not None or student is not None:
        raise UsageError(f"--teacher or --student came with {name}; expected `fuserec train distill`")
    if start is None:
        if name is None:
            raise UsageError(f"no recipe came; expected one of {', '.join(ALL_LINES)}")
        return get_recipe(name)
    made_by = start.recipe_name()
    if name not in (None, made_by):
        raise UsageError(f"the checkpoint was made by {made_by}, and {name} came; leave the recipe out")
    return get_recipe(made_by)


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
