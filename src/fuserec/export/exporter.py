"""The exporter: a checkpoint becomes a model repository that the inference server can serve."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fuserec import __version__
from fuserec.contract import ENCODE, EXPLAIN, RANK, RANKER, RECOMMEND, SEARCH, TEXT_ENCODER, USER_TOWER
from fuserec.errors import ExportError
from fuserec.export.config import ExportConfig
from fuserec.export.gate import choose_engines
from fuserec.export.ids import require_served_numbers
from fuserec.export.judging import Reference
from fuserec.export.ladder import BuiltEngine, Ladder, OnBuild, OnStep, ask, climb, trace
from fuserec.export.parts import Part, ranker, text_encoder, user_tower
from fuserec.export.precision import SCHEMES
from fuserec.export.publishing import publishing
from fuserec.export.report import ReportHead, write_report
from fuserec.export.rerank import Reranking
from fuserec.export.sources import Sources, load_sources
from fuserec.export.targets import CPU
from fuserec.export.tensorrt import check_target
from fuserec.export.unchanged import already_published, data_fingerprint, inputs_sha256, tool_versions
from fuserec.kernels import ItemIndex
from fuserec.manifest import EngineRecord, Manifest, PartRecord, TextRecord
from fuserec.models.text import TextRetriever
from fuserec.tokens import Tokenizer


def export_checkpoint(
    checkpoint_folder: Path,
    repository: Path,
    config: ExportConfig | None = None,
    *,
    keep: int = 2,
    force: bool = False,
    accept_new_ids: bool = False,
    on_step: OnStep = lambda step: None,
    on_build: OnBuild = lambda done, total, what: None,
) -> Manifest:
    """Export a checkpoint as the next version of a model repository, unless its newest version is this very export.

    Everything is built aside and put in place when all of it is there.

    Args:
        checkpoint_folder: Folder written by `fuserec train`.
        repository: Folder to write into; one that exists must be empty or hold earlier exports.
        config: Options.
        keep: How many good versions stay in the repository, this one included.
        force: Whether to build what is there already.
        accept_new_ids: Whether ids may have other numbers than in the version that the repository serves.
        on_step: Called with a line about each step before it begins.
        on_build: Called with how many engines of how many are built, and what was built last.

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
    for target in config.all_targets:
        if target.name != CPU:
            check_target(target)
    on_step("reading the checkpoint")
    sources = load_sources(checkpoint_folder, config.ranker)
    checkpoint = sources.checkpoint
    if not accept_new_ids:
        require_served_numbers(repository, checkpoint.ids, checkpoint_folder)
    models = _models(sources)
    parts, index = _parts(sources, config, on_step)
    originals: Sequence[Part | None] = [None] * len(parts)
    if config.reference is not None:
        originals, _ = _parts(load_sources(config.reference, config.ranker), config, on_step)
    inputs, data = inputs_sha256(checkpoint_folder, config), data_fingerprint(checkpoint_folder)
    with publishing(repository, models, keep=keep) as staging, tempfile.TemporaryDirectory() as made:
        scratch, bundle = Path(made), staging.bundle
        ladders = [
            _climb(part, original, config, scratch, on_step, on_build)
            for part, original in zip(parts, originals, strict=True)
        ]
        if config.precision in SCHEMES and not any(rung.quantized for ladder in ladders for rung in ladder.rungs):
            raise ExportError(
                f"{checkpoint.architecture} has no matrix product with weights to quantize; export it as fp32 or fp16"
            )
        chosen = {ladder.part.name: choose_engines(ladder, config) for ladder in ladders}
        (bundle / "engines").mkdir()
        records = {ladder.part.name: _publish(ladder, chosen[ladder.part.name], bundle) for ladder in ladders}
        on_step("writing the report, the tables and the index")
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        counts = {"items": checkpoint.items.height, "users": checkpoint.users.height}
        counts["interactions"] = int(checkpoint.items["count"].sum())
        weights = next(iter(sources.sha256.values()))
        head = ReportHead(checkpoint.architecture, __version__, weights, created, counts, data)
        write_report(ladders, chosen, config, head, bundle)
        if index is not None:
            index.save(bundle / "index.safetensors")
        checkpoint.items.write_parquet(bundle / "items.parquet")
        checkpoint.users.write_parquet(bundle / "users.parquet")
        checkpoint.ids.write(bundle)
        if checkpoint.tokenizer is not None and TEXT_ENCODER in records:
            (bundle / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
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
            created=created,
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
            ids=checkpoint.ids.fingerprints,
        )
        manifest.write(bundle)
    on_step(f"published as version {staging.version}")
    return dataclasses.replace(manifest, version=staging.version)


def graph_file(part: str) -> str:
    """Return where the graph of a part lies, relative to the bundle."""
    return f"engines/{part}.cpu.onnx"


def _climb(
    part: Part, original: Part | None, config: ExportConfig, scratch: Path, on_step: OnStep, on_build: OnBuild
) -> Ladder:
    """Build all that is asked for of a part; `original` is the same part of the reference, None if that is the same."""
    on_step(f"{part.title}: tracing to ONNX")
    traced = trace(part, scratch)
    lists = ask(traced, part, "cpu")
    before = lists
    if original is not None:
        (scratch / "original").mkdir(exist_ok=True)
        before = ask(trace(original, scratch / "original"), original, "cpu")
    return climb(part, traced, Reference(lists, before), scratch, config, on_step, on_build)


def _publish(ladder: Ladder, chosen: dict[str, BuiltEngine], bundle: Path) -> PartRecord:
    """Copy the chosen engines of a part into the bundle."""
    part = ladder.part
    engines = {}
    for target, engine in chosen.items():
        file = graph_file(part.name) if target == CPU else f"engines/{part.name}.{target}.engine"
        shutil.copyfile(engine.path, bundle / file)
        engines[target] = EngineRecord(
            file,
            engine.target.runtime,
            engine.runtime_version,
            engine.rung.effective,
            round(engine.build_s, 2),
            engine.rung.parity,
            asdict(engine.rung.quality),
        )
    return PartRecord(part.signature, {part.output: part.shape}, engines)


def _models(sources: Sources) -> list[str]:
    """Return what is served, the front door first."""
    retrieving = [RECOMMEND, ENCODE, SEARCH, EXPLAIN] if sources.retriever is not None else []
    return retrieving + ([RANK] if sources.ranker is not None else [])


def _parts(sources: Sources, config: ExportConfig, on_step: OnStep) -> tuple[list[Part], ItemIndex | None]:
    """Return what is to be exported, and the index of the items, if they are to be found."""
    checkpoint = sources.checkpoint
    users, items = checkpoint.users, checkpoint.items
    parts, index = [], None
    if sources.retriever is not None:
        on_step("encoding the items and building the index")
        index = ItemIndex.build(sources.retriever.item_vectors().numpy(), items["item_id"].to_numpy())
        parts.append(user_tower(sources.retriever, users, items, index, config.calibration_users))
        if isinstance(sources.retriever, TextRetriever):
            assert checkpoint.tokenizer is not None
            text = _text_record(sources)
            tokenizer = Tokenizer(
                checkpoint.tokenizer, max_tokens=text.max_tokens, pad_id=text.pad_id, prompt=text.prompt
            )
            parts.append(text_encoder(sources.retriever, items, index, tokenizer))
    if sources.ranker is not None:
        reads_texts = sources.ranker_reads_texts
        parts.append(ranker(sources.ranker, users, items, config.calibration_users, reads_texts=reads_texts))
    return parts, index


def _text_record(sources: Sources) -> TextRecord:
    module = sources.retriever
    assert isinstance(module, TextRetriever)
    config = module.config
    return TextRecord(config.max_tokens, module.encoder.pad_id, config.query_prompt, literal_pad=True)
