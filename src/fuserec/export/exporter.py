"""The exporter: a checkpoint becomes a model repository that the inference server can serve."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuserec.contract import MAX_BATCH, RECOMMEND
from fuserec.errors import BundleError, ExportError
from fuserec.export.config import TARGETS, ExportConfig
from fuserec.export.histories import split_histories
from fuserec.export.onnx_graph import INPUTS, export_user_tower
from fuserec.export.parity import compare
from fuserec.export.precision import batches, convert, count_quantized
from fuserec.export.tensorrt import build_engine, library_version
from fuserec.files import replacing_folder, sha256
from fuserec.kernels import ItemIndex
from fuserec.manifest import EngineRecord, FileRecord, Manifest, bundle_folder
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever

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
    checkpoint = Checkpoint.load(checkpoint_folder)
    module = checkpoint.module()
    if not isinstance(module, Retriever):
        raise ExportError(f"{checkpoint.architecture} has no user tower and item vectors to export")
    max_history = int(checkpoint.arguments["max_history"])
    with replacing_folder(repository) as folder, tempfile.TemporaryDirectory() as scratch:
        bundle = _copy_models(folder)
        (bundle / "engines").mkdir()

        on_step(f"tracing the user tower to ONNX, then to {config.precision}")
        start = time.perf_counter()
        traced = Path(scratch) / "user_tower.onnx"
        export_user_tower(module.user_tower, max_history, traced)
        calibration, check = split_histories(checkpoint.users, checkpoint.items, max_history, config.calibration_users)
        graph = bundle / "engines" / "cpu.onnx"
        convert(traced, config.precision, batches(calibration.users, calibration.items, MAX_BATCH), graph)
        if config.precision == "int8" and count_quantized(graph) == 0:
            raise ExportError("the graph has no matrix product with weights to quantize; export it as fp32 or fp16")
        engines = {
            "cpu": EngineRecord(
                "engines/cpu.onnx",
                "onnxruntime",
                importlib.metadata.version("onnxruntime"),
                config.precision,
                round(time.perf_counter() - start, 2),
            )
        }
        for target in config.targets:
            on_step(f"building the TensorRT-RTX engine for {target} ({TARGETS[target]})")
            start = time.perf_counter()
            name = f"engines/{target}.engine"
            (bundle / name).write_bytes(build_engine(graph, target, max_history))
            seconds = round(time.perf_counter() - start, 2)
            engines[target] = EngineRecord(name, "tensorrt-rtx", library_version(), config.precision, seconds)

        on_step("encoding the items and writing the index")
        vectors = module.item_vectors().numpy()
        index = ItemIndex.build(vectors, checkpoint.items["item_id"].to_numpy())
        index.save(bundle / "index.safetensors")
        checkpoint.items.write_parquet(bundle / "items.parquet")
        checkpoint.users.write_parquet(bundle / "users.parquet")

        on_step("comparing the exported graph with the trained module")
        manifest = Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            architecture=checkpoint.architecture,
            precision=config.precision,
            dim=vectors.shape[1],
            n_users=checkpoint.users.height,
            n_items=checkpoint.items.height,
            max_history=max_history,
            inputs=INPUTS,
            outputs={"user_vector": f"{np.dtype(np.float32).name} (B, {vectors.shape[1]})"},
            engines=engines,
            checkpoint_sha256=sha256(checkpoint_folder / "model.safetensors"),
            metrics=checkpoint.metrics,
            parity=compare(graph, module.user_tower, index, check),
            tools={tool: importlib.metadata.version(tool) for tool in TOOLS},
            files={
                str(path.relative_to(folder)): FileRecord.of(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        )
        manifest.write(bundle)
    return manifest


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


def _copy_models(folder: Path) -> Path:
    """Copy the models of the repository into `folder` and return the bundle's folder."""
    with importlib.resources.as_file(importlib.resources.files("fuserec") / "model_repository") as templates:
        shutil.copytree(templates, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / RECOMMEND / VERSION
