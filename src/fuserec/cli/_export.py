"""`fuserec export` and `fuserec inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fuserec.cli._app import JsonFlag, app
from fuserec.cli._shrink import Smaller, made_smaller

if TYPE_CHECKING:
    from fuserec.manifest import Manifest

SMALLER: Final = "Making the model smaller first"


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by `fuserec train`.")],
    repository: Annotated[Path, typer.Option(help="Folder to write the model repository into.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "int8",
    target: Annotated[
        list[str] | None, typer.Option(help="GPU to build an engine for: sm80, sm86, sm89, sm120; repeatable.")
    ] = None,
    ranker: Annotated[
        Path | None, typer.Option(help="Checkpoint of a ranker that is to reorder what this one finds.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="How many of the best found items the ranker sees.")] = 200,
    as_json: JsonFlag = False,
    prune: Annotated[
        float, typer.Option(help="Share of the hidden units to take out first, from 0 to 1.", rich_help_panel=SMALLER)
    ] = 0.0,
    drop_layers: Annotated[int, typer.Option(help="Layers to leave out first.", rich_help_panel=SMALLER)] = 0,
    fine_tune_epochs: Annotated[
        int, typer.Option(min=0, help="How long what is left is fine-tuned.", rich_help_panel=SMALLER)
    ] = 2,
    data: Annotated[
        Path | None,
        typer.Option(
            help="What the checkpoint was trained on, where fine-tuning needs ratings.", rich_help_panel=SMALLER
        ),
    ] = None,
    save_shrunk: Annotated[
        Path | None, typer.Option(help="Folder to keep the smaller checkpoint in.", rich_help_panel=SMALLER)
    ] = None,
) -> None:
    """Export a checkpoint: ONNX, quantized engines, item index, and a manifest of it all."""
    from fuserec import display
    from fuserec.export import ExportConfig, export_checkpoint

    config = ExportConfig(precision, tuple(target or ()), ranker=ranker, candidates=candidates)
    smaller = Smaller(prune, drop_layers, fine_tune_epochs, data, save_shrunk)
    # `reference` is what the quality gate is to compare with, so that a shrunk model is not judged by itself.
    with made_smaller(checkpoint, smaller) as (source, reference), display.steps() as on_step:
        manifest = export_checkpoint(source, repository, config, on_step=on_step)
    _show_manifest(manifest, repository, as_json)


@app.command()
def inspect(
    repository: Annotated[Path, typer.Argument(help="Folder written by `fuserec export`.")],
    as_json: JsonFlag = False,
) -> None:
    """Print what a repository holds, after comparing every file with its recorded hash."""
    from fuserec.manifest import Manifest, bundle_folder

    manifest = Manifest.read(bundle_folder(repository))
    manifest.verify(repository)
    _show_manifest(manifest, repository, as_json)


def _show_manifest(manifest: Manifest, repository: Path, as_json: bool) -> None:
    from fuserec import display

    if as_json:
        typer.echo(json.dumps(asdict(manifest), indent=2))
    else:
        display.manifest(manifest, repository)
