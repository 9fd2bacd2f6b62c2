"""The exporter: a checkpoint becomes a model repository that the inference server can serve."""

from __future__ import annotations

import datetime
import importlib.resources
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fuserec.contract import ENCODE, EXPLAIN, RANK, RANKER, RECOMMEND, SEARCH, TEXT_ENCODER, USER_TOWER
from fuserec.errors import BundleError, ExportError
from fuserec.export.config import ExportConfig
from fuserec.export.gate import choose_engines
from fuserec.export.ladder import BuiltEngine, Ladder, OnBuild, OnStep, ask, climb, trace
from fuserec.export.parts import Part, ranker, text_encoder, user_tower
from fuserec.export.report import tool_versions, write_report
from fuserec.export.rerank import Reranking
from fuserec.export.sources import Sources, load_sources
from fuserec.export.targets import CPU, TARGETS
from fuserec.export.tensorrt import check_target
from fuserec.files import replacing_folder
from fuserec.kernels import ItemIndex
from fuserec.manifest import EngineRecord, FileRecord, Manifest, PartRecord, TextRecord, bundle_folder
from fuserec.models.text import TextRetriever
from fuserec.tokens import Tokenizer

VERSION = "1"


def export_checkpoint(
    checkpoint_folder: Path,
    repository: Path,
    config: ExportConfig | None = None,
    *,
    on_step: OnStep = lambda step: None,
    on_build: OnBuild = lambda done, total, what: None,
) -> Manifest:
    """Export a checkpoint as a model repository.

    Everything is built in a folder beside `repository`, which takes its place when all of it is there.

    Args:
        checkpoint_folder: Folder written by `fuserec train`.
        repository: Folder to write; one that exists must be empty or an earlier export.
        config: Options.
        on_step: Called with a line about each step before it begins.
        on_build: Called with how many engines of how many are built, and what was built last.

    Returns:
        The manifest of what was published.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ExportError: The export cannot be carried out; `repository` is as it was.
    """
    config = config or ExportConfig()
    _refuse_foreign(repository)
    for target in config.targets:
        if target != CPU:
            check_target(TARGETS[target])
    on_step("reading the checkpoint")
    sources = load_sources(checkpoint_folder, config.ranker)
    checkpoint = sources.checkpoint
    models = _models(sources)
    index = _index(sources, on_step)
    parts = _parts(sources, index, config)
    with replacing_folder(repository) as folder, tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        ladders = [_climb(part, config, scratch, on_step, on_build) for part in parts]
        chosen = {ladder.part.name: choose_engines(ladder, config) for ladder in ladders}
        bundle = _copy_models(folder, models)
        (bundle / "engines").mkdir()
        records = {ladder.part.name: _publish(ladder, chosen[ladder.part.name], bundle) for ladder in ladders}
        on_step("writing the report, the tables and the index")
        write_report(ladders, chosen, config, checkpoint.architecture, bundle)
        if index is not None:
            index.save(bundle / "index.safetensors")
        checkpoint.items.write_parquet(bundle / "items.parquet")
        checkpoint.users.write_parquet(bundle / "users.parquet")
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
            tools=tool_versions(),
            files={
                str(path.relative_to(folder)): FileRecord.of(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        )
        manifest.write(bundle)
    return manifest


def graph_file(part: str) -> str:
    """Return where the graph of a part lies, relative to the bundle."""
    return f"engines/{part}.cpu.onnx"


def _climb(part: Part, config: ExportConfig, scratch: Path, on_step: OnStep, on_build: OnBuild) -> Ladder:
    on_step(f"{part.title}: tracing to ONNX")
    traced = trace(part, scratch)
    reference = ask(traced, part, "fp32")
    return climb(part, traced, reference, scratch, config, on_step, on_build)


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


def _index(sources: Sources, on_step: OnStep) -> ItemIndex | None:
    if sources.retriever is None:
        return None
    on_step("encoding the items and building the index")
    vectors = sources.retriever.item_vectors().numpy()
    return ItemIndex.build(vectors, sources.checkpoint.items["item_id"].to_numpy())


def _models(sources: Sources) -> list[str]:
    """Return what is served, the front door first."""
    retrieving = [RECOMMEND, ENCODE, SEARCH, EXPLAIN] if sources.retriever is not None else []
    return retrieving + ([RANK] if sources.ranker is not None else [])


def _parts(sources: Sources, index: ItemIndex | None, config: ExportConfig) -> list[Part]:
    checkpoint = sources.checkpoint
    users, items = checkpoint.users, checkpoint.items
    parts = []
    if index is not None:
        assert sources.retriever is not None
        parts.append(user_tower(sources.retriever, users, items, index, config.calibration_users))
        if isinstance(sources.retriever, TextRetriever):
            assert checkpoint.tokenizer is not None
            text = _text_record(sources)
            tokenizer = Tokenizer(checkpoint.tokenizer, max_tokens=text.max_tokens, pad_id=text.pad_id)
            parts.append(text_encoder(sources.retriever, items, index, tokenizer))
    if sources.ranker is not None:
        reads_texts = sources.ranker_reads_texts
        parts.append(ranker(sources.ranker, users, items, config.calibration_users, reads_texts=reads_texts))
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
