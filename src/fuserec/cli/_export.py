"""`fuserec export` and `fuserec inspect`."""

from __future__ import annotations

import dataclasses
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
    precision: Annotated[
        str,
        typer.Option(
            help="auto (the fastest that passes the gate, for each target), fp32, fp16, bf16, int8, fp8, "
            "int8-weight-only."
        ),
    ] = "auto",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What to build engines for, repeatable: cpu (always built); sm75, sm80, sm86, sm89, sm120 "
            "(TensorRT-RTX, ahead of time); tensorrt-sm80, -sm89, -sm90, -sm100 (TensorRT, on that GPU)."
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="How ranges of quantized activations are chosen: max, entropy or percentile.")
    ] = "max",
    max_ndcg_loss: Annotated[float, typer.Option(help="Relative loss of NDCG@10 that the gate lets pass.")] = 0.01,
    min_overlap: Annotated[float, typer.Option(help="Share of the ten best items that must stay.")] = 0.95,
    accept_quality_loss: Annotated[bool, typer.Option(help="Publish what does not pass the gate, too.")] = False,
    ranker: Annotated[
        Path | None, typer.Option(help="Checkpoint of a ranker that is to reorder what this one finds.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="How many of the best found items the ranker sees.")] = 200,
    keep: Annotated[int, typer.Option(min=1, help="How many good versions stay, this one included.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Build even what the repository already holds.")] = False,
    accept_new_ids: Annotated[
        bool, typer.Option("--accept-new-ids", help="Publish what numbers its ids otherwise than what is served.")
    ] = False,
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
    """Export a checkpoint as the next version: engines that pass a gate on ranking quality, index, and manifest."""
    from fuserec import display
    from fuserec.export import ExportConfig, Gate
    from fuserec.export.unchanged import already_published

    smaller = Smaller(prune, drop_layers, fine_tune_epochs, data, save_shrunk)
    gate = Gate(max_ndcg_loss, min_overlap, accept_quality_loss)
    config = ExportConfig(precision, tuple(target or ()), calibration, gate=gate, ranker=ranker, candidates=candidates)
    # `reference` is what the gate compares with, so that a smaller model is not judged by itself.
    with made_smaller(checkpoint, smaller) as (source, reference):
        config = dataclasses.replace(config, reference=reference)
        # Asked here, before the exporter and with it torch is imported.
        manifest = None if force else already_published(source, repository, config)
        with display.steps() as steps:
            if manifest is not None:
                steps(f"version {manifest.version} already holds this export; --force builds it anew")
            else:
                from fuserec.export import export_checkpoint

                manifest = export_checkpoint(
                    source, repository, config, keep=keep, force=True, accept_new_ids=accept_new_ids,
                    on_step=steps, on_build=steps.advance,
                )  # fmt: skip
    _show_manifest(manifest, repository, as_json)
    _say_what_stays_served(manifest.version, repository)


def _say_what_stays_served(version: int, repository: Path) -> None:
    """Say on stderr that another version is pinned: its servers do not turn to a new one by themselves."""
    from fuserec.errors import BundleError
    from fuserec.traffic import Traffic

    try:
        pinned = Traffic.read(repository).serve
    except BundleError as error:
        typer.echo(f"what is served cannot be told: {error}", err=True)
        return
    if pinned is not None and pinned != version:
        typer.echo(
            f"version {pinned} is pinned in {repository} and stays served; "
            f"`fuserec traffic {repository} --serve newest` turns to version {version}",
            err=True,
        )


@app.command()
def inspect(
    repository: Annotated[Path, typer.Argument(help="Folder written by `fuserec export`.")],
    version: Annotated[int | None, typer.Option(help="Version to look at; the newest by default.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print what a version of a repository holds, after comparing every file with its recorded hash."""
    from fuserec.manifest import Manifest, bundle_folder

    manifest = Manifest.read(bundle_folder(repository, version))
    manifest.verify(repository)
    _show_manifest(manifest, repository, as_json)


def _show_manifest(manifest: Manifest, repository: Path, as_json: bool) -> None:
    from fuserec import display
    from fuserec.manifest import bundles

    versions = list(bundles(repository))
    if as_json:
        typer.echo(json.dumps({**asdict(manifest), "versions": versions}, indent=2))
    else:
        display.manifest(manifest, repository, versions)
