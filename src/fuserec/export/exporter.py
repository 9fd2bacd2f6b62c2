"""The exporter: a checkpoint becomes a model repository that the inference server can serve."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fuserec.contract import ENCODE, EXPLAIN, RANK, RANKER, RECOMMEND, SEARCH, TEXT_ENCODER, USER_TOWER
from fuserec.errors import BundleError, ExportError
from fuserec.export.building import build_part, graph_file
from fuserec.export.config import ExportConfig
from fuserec.export.parity import compare
from fuserec.export.parts import Part, ranker, text_encoder, user_tower
from fuserec.export.rerank import Reranking
from fuserec.export.sources import Sources, load_sources
from fuserec.files import replacing_folder
from fuserec.kernels import ItemIndex
from fuserec.manifest import FileRecord, Manifest, PartRecord, TextRecord, bundle_folder
from fuserec.models.text import TextRetriever

TOOLS = ("fuserec", "torch", "onnx", "onnxruntime", "numpy", "tensorrt-rtx")
VERSION = "1"


def export_checkpoint(
    checkpoint_folder: Path,
    repository: Path,
    config: ExportConfig | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Export a checkpoint as a model repository.

    Everything is built in a folder beside `repository`, which takes its place when all of it is there.

    Args:
        checkpoint_folder: Folder written by `fuserec train`.
        repository: Folder to write; one that exists must be empty or an earlier export.
        config: Options.
        on_step: Called with a line about each step before it begins.

    Returns:
        The manifest of what was published.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ExportError: The export cannot be carried out; `repository` is as it was.
    """
    config = config or ExportConfig()
    _refuse_foreign(repository)
    on_step("reading the checkpoint")
    sources = load_sources(checkpoint_folder, config.ranker)
    checkpoint = sources.checkpoint
    models = _models(sources)
    parts = _parts(sources, config)
    with replacing_folder(repository) as folder, tempfile.TemporaryDirectory() as scratch:
        bundle = _copy_models(folder, models)
        (bundle / "engines").mkdir()
        engines = {part.name: build_part(part, bundle, Path(scratch), config, on_step) for part in parts}
        if config.precision not in {engine.precision for built in engines.values() for engine in built.values()}:
            raise ExportError(
                f"{checkpoint.architecture} has no matrix product with weights to quantize; export it as fp32 or fp16"
            )

        index = None
        if sources.retriever is not None:
            on_step("encoding the items and writing the index")
            vectors = sources.retriever.item_vectors().numpy()
            index = ItemIndex.build(vectors, checkpoint.items["item_id"].to_numpy())
            index.save(bundle / "index.safetensors")
        checkpoint.items.write_parquet(bundle / "items.parquet")
        checkpoint.users.write_parquet(bundle / "users.parquet")
        if checkpoint.tokenizer is not None and TEXT_ENCODER in engines:
            (bundle / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")

        on_step("comparing the exported graphs with the trained modules")
        records = {
            part.name: PartRecord(
                part.signature,
                {part.output: part.shape},
                engines[part.name],
                compare(bundle / graph_file(part.name), part, None if part.name == RANKER else index),
            )
            for part in parts
        }
        rerank = None
        by_name = {part.name: (part, bundle / graph_file(part.name)) for part in parts}
        if index is not None and RANKER in by_name:
            on_step("weighing the ranker against the retriever on held-out items")
            graphs = by_name[USER_TOWER], by_name[RANKER]
            rerank = Reranking(*graphs, index, checkpoint.users, checkpoint.items, config.candidates).choose()
        metrics = checkpoint.metrics
        if sources.ranker_metrics is not None:
            metrics = metrics | {"ranker": sources.ranker_metrics}
        manifest = Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            architecture=checkpoint.architecture,
            precision=config.precision,
            models=models,
            dim=0 if index is None else index.dim,
            n_users=checkpoint.users.height,
            n_items=checkpoint.items.height,
            max_history={part.name: part.max_history for part in parts if part.max_history},
            parts=records,
            text=_text_record(sources) if TEXT_ENCODER in records else None,
            heads=[] if sources.ranker is None else list(sources.ranker.heads),
            rerank=rerank,
            checkpoint_sha256=sources.sha256,
            metrics=metrics,
            tools={tool: importlib.metadata.version(tool) for tool in TOOLS},
            files={
                str(path.relative_to(folder)): FileRecord.of(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        )
        manifest.write(bundle)
    return manifest


def _models(sources: Sources) -> list[str]:
    """Return what is served, the front door first."""
    retrieving = [RECOMMEND, ENCODE, SEARCH, EXPLAIN] if sources.retriever is not None else []
    return retrieving + ([RANK] if sources.ranker is not None else [])


def _parts(sources: Sources, config: ExportConfig) -> list[Part]:
    users, items = sources.checkpoint.users, sources.checkpoint.items
    parts = []
    if sources.retriever is not None:
        parts.append(user_tower(sources.retriever, users, items, config.calibration_users))
        if isinstance(sources.retriever, TextRetriever):
            parts.append(text_encoder(sources.retriever))
    if sources.ranker is not None:
        parts.append(ranker(sources.ranker, users, items, reads_texts=sources.ranker_reads_texts))
    return parts


def _text_record(sources: Sources) -> TextRecord:
    module = sources.retriever
    assert isinstance(module, TextRetriever)
    return TextRecord(module.config.max_tokens, module.encoder.pad_id)


def _refuse_foreign(repository: Path) -> None:
    """Raise unless `repository` may be replaced: it does not exist, is empty, or was written by an export."""
    if not repository.exists():
        return
    if not repository.is_dir():
        raise ExportError(f"{repository} is a file; expected a folder to write, or a name that is free")
    if any(repository.iterdir()):
        try:
            bundle_folder(repository)
        except BundleError:
            raise ExportError(
                f"{repository} is not empty and was not written by `fuserec export`; give another --repository"
            ) from None


def _copy_models(folder: Path, models: Sequence[str]) -> Path:
    """Copy the served models into `folder` and return the bundle's folder, which is the front door's."""
    with importlib.resources.as_file(importlib.resources.files("fuserec") / "model_repository") as templates:
        for model in models:
            shutil.copytree(templates / model, folder / model, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / models[0] / VERSION
