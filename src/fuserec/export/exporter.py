"""The exporter: a checkpoint becomes a model repository that the inference server can serve."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path

from fuserec.contract import ENCODE, EXPLAIN, RANK, RANKER, RECOMMEND, SEARCH, TEXT_ENCODER, USER_TOWER
from fuserec.errors import ExportError
from fuserec.export.building import build_part, graph_file
from fuserec.export.config import ExportConfig
from fuserec.export.parity import compare
from fuserec.export.parts import Part, ranker, text_encoder, user_tower
from fuserec.export.publishing import publishing
from fuserec.export.rerank import Reranking
from fuserec.export.sources import Sources, load_sources
from fuserec.export.unchanged import already_published, data_fingerprint, inputs_sha256, tool_versions
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest, PartRecord, TextRecord
from fuserec.models.text import TextRetriever


def export_checkpoint(
    checkpoint_folder: Path,
    repository: Path,
    config: ExportConfig | None = None,
    *,
    keep: int = 2,
    force: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Export a checkpoint as the next version of a model repository, unless its newest version is this very export.

    Everything is built aside and put in place when all of it is there.

    Args:
        checkpoint_folder: Folder written by `fuserec train`.
        repository: Folder to write into; one that exists must be empty or hold earlier exports.
        config: Options.
        keep: How many good versions stay in the repository, this one included.
        force: Whether to build what is there already.
        on_step: Called with a line about each step before it begins.

    Returns:
        The manifest of what was published.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ExportError: The export cannot be carried out; `repository` is as it was.
    """
    config = config or ExportConfig()
    if not force and (there := already_published(checkpoint_folder, repository, config)):
        on_step(f"version {there.version} already holds this export")
        return there
    on_step("reading the checkpoint")
    sources = load_sources(checkpoint_folder, config.ranker)
    checkpoint = sources.checkpoint
    models = _models(sources)
    parts = _parts(sources, config)
    inputs, data = inputs_sha256(checkpoint_folder, config), data_fingerprint(checkpoint_folder)
    with publishing(repository, models, keep=keep) as staging, tempfile.TemporaryDirectory() as scratch:
        bundle = staging.bundle
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
            data_fingerprint=data,
            inputs_sha256=inputs,
            metrics=metrics,
            tools=tool_versions(),
            files=staging.files(),
        )
        manifest.write(bundle)
    on_step(f"published as version {staging.version}")
    return dataclasses.replace(manifest, version=staging.version)


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
