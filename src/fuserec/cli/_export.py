"""`fuserec export` and `fuserec inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuserec.cli._app import JsonFlag, app

if TYPE_CHECKING:
    from fuserec.manifest import Manifest


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
    keep: Annotated[int, typer.Option(min=1, help="How many good versions stay, this one included.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Build even what the repository already holds.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a checkpoint as the next version: ONNX, quantized engines, item index, and a manifest of it all."""
    from fuserec import display
    from fuserec.export import ExportConfig
    from fuserec.export.unchanged import already_published

    config = ExportConfig(precision, tuple(target or ()), ranker=ranker, candidates=candidates)
    # Asked here, before the exporter and with it torch is imported.
    manifest = None if force else already_published(checkpoint, repository, config)
    with display.steps() as on_step:
        if manifest is not None:
            on_step(f"version {manifest.version} already holds this export; --force builds it anew")
        else:
            from fuserec.export import export_checkpoint

            manifest = export_checkpoint(checkpoint, repository, config, keep=keep, force=True, on_step=on_step)
    _show_manifest(manifest, repository, as_json)


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
