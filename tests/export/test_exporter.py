"""An export is whole, true to its checkpoint, and never takes what is not its own."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from fuserec.errors import CheckpointError, ExportError
from fuserec.export import ExportConfig, Gate, export_checkpoint, ladder
from fuserec.files import sha256
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest, bundle_folder
from fuserec.models.checkpoint import Checkpoint

TraceOnce = Callable[[], AbstractContextManager[None]]


def test_repository_has_the_layout_the_server_expects(repository: Path) -> None:
    for model in ("recommend", "encode", "search"):
        assert (repository / model / "config.pbtxt").is_file()
        assert (repository / model / "1" / "model.py").is_file()
    assert not list(repository.rglob("__pycache__"))
    assert oct(repository.stat().st_mode & 0o755) == "0o755", "the server may run as another user"


def test_manifest_says_what_was_built(repository: Path, bundle: Path, checkpoint_folder: Path) -> None:
    manifest = Manifest.read(bundle)
    assert (manifest.architecture, manifest.precision, manifest.dim) == ("two-tower", "int8", 32)
    assert (manifest.n_items, manifest.n_users, manifest.max_history) == (300, 230, {"user_tower": 20})
    tower = manifest.parts["user_tower"]
    assert set(tower.engines) == {"cpu", "sm89"}
    assert manifest.checkpoint_sha256 == {"retriever": sha256(checkpoint_folder / "model.safetensors")}
    assert manifest.models == ["recommend", "encode", "search", "explain"]
    for engine in tower.engines.values():
        assert engine.precision == "int8"
        assert 0 < engine.parity_error < 0.2
        assert 0.8 < (engine.quality["overlap"] or 0) <= 1


def test_index_holds_the_item_vectors(bundle: Path, checkpoint_folder: Path) -> None:
    checkpoint = Checkpoint.load(checkpoint_folder)
    index = ItemIndex.load(bundle / "index.safetensors")
    np.testing.assert_array_equal(index.ids, checkpoint.items["item_id"].to_numpy())
    np.testing.assert_array_equal(index.embeddings, checkpoint.module().item_vectors().numpy())


def test_next_export_is_the_next_version(
    repository: Path, checkpoint_folder: Path, trace_once: TraceOnce, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    with trace_once():
        manifest = export_checkpoint(checkpoint_folder, copy, ExportConfig(precision="fp32"))
    assert manifest.version == 2 and manifest == Manifest.read(bundle_folder(copy))
    assert set(manifest.parts["user_tower"].engines) == {"cpu"}
    for version in (1, 2):
        Manifest.read(copy / "recommend" / str(version)).verify(copy)
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_foreign_folder_is_left_alone(checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ExportError, match="was not written by `fuserec export`"):
        export_checkpoint(checkpoint_folder, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_in_the_way_is_left_alone(checkpoint_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("important")
    with pytest.raises(ExportError, match="is a file"):
        export_checkpoint(checkpoint_folder, path)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        export_checkpoint(tmp_path / "absent", tmp_path / "repository")
    assert not list(tmp_path.iterdir())


def test_fault_half_way_leaves_the_old_repository(
    repository: Path,
    checkpoint_folder: Path,
    trace_once: TraceOnce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))

    def fail(*arguments: object) -> bytes:
        raise ExportError("no such luck")

    monkeypatch.setattr(ladder, "build_engine", fail)
    with trace_once(), pytest.raises(ExportError, match="no such luck"):
        export_checkpoint(checkpoint_folder, copy, ExportConfig(precision="fp32", targets=("sm89",)))
    Manifest.read(copy / "recommend" / "1").verify(copy)
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_a_part_without_anything_to_quantize_stays_in_fp32(
    untrained: Callable[[str, Path], None], trace_once: TraceOnce, tmp_path: Path
) -> None:
    untrained("text", tmp_path / "text")
    checkpoint = Checkpoint.load(tmp_path / "text")
    state = {name: tensor for name, tensor in checkpoint.state.items() if ".blocks." not in name}
    arguments = checkpoint.arguments | {"n_blocks": 0}
    plain = Checkpoint("text", arguments, checkpoint.items, checkpoint.users.clear(), {}, state, checkpoint.tokenizer)
    plain.save(tmp_path / "plain")
    config = ExportConfig(precision="int8", gate=Gate(accept_loss=True))
    manifest = export_checkpoint(tmp_path / "plain", tmp_path / "repository", config)
    assert {name: part.engines["cpu"].precision for name, part in manifest.parts.items()} == {
        "user_tower": "fp32",
        "text_encoder": "int8",
    }
    untrained("mf", tmp_path / "mf")
    with trace_once(), pytest.raises(ExportError, match="mf has no matrix product with weights to quantize"):
        export_checkpoint(tmp_path / "mf", tmp_path / "other", ExportConfig(precision="int8"))
    assert not (tmp_path / "other").exists()
