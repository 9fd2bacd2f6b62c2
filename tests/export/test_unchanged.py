"""An export that is there already is found, and only that one."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuserec.export import ExportConfig, Gate, export_checkpoint, exporter, unchanged
from fuserec.export.unchanged import already_published, data_fingerprint, inputs_sha256
from fuserec.manifest import Manifest

CONFIG = ExportConfig(precision="int8", targets=("sm89",), gate=Gate(accept_loss=True))


class Built(Exception):
    pass


def refuse_to_build(*arguments: object) -> None:
    raise Built


def test_the_same_export_is_not_built_again(
    checkpoint_folder: Path, repository: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "load_sources", refuse_to_build)
    steps: list[str] = []
    manifest = export_checkpoint(checkpoint_folder, repository, CONFIG, on_step=steps.append)
    assert manifest == Manifest.read(bundle)
    assert steps == ["version 1 already holds this export"]
    with pytest.raises(Built):
        export_checkpoint(checkpoint_folder, repository, CONFIG, force=True)
    with pytest.raises(Built):
        export_checkpoint(checkpoint_folder, repository, dataclasses.replace(CONFIG, precision="fp16"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "recommend/1/users.parquet").write_bytes(b"!"), id="file changed"),
        pytest.param(lambda folder: (folder / "recommend/1/manifest.json").write_text("{}"), id="manifest"),
        pytest.param(lambda folder: (folder / "search/config.pbtxt").unlink(), id="configuration missing"),
        pytest.param(shutil.rmtree, id="nothing there"),
    ],
)
def test_what_does_not_verify_is_built_again(
    checkpoint_folder: Path, repository: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    assert already_published(checkpoint_folder, copy, CONFIG)
    damage(copy)
    assert already_published(checkpoint_folder, copy, CONFIG) is None


def test_configuration_of_an_older_version_is_put_right(
    checkpoint_folder: Path, repository: Path, tmp_path: Path
) -> None:
    """So it is left by an export that was killed at its very end."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    (copy / "search/2").mkdir()
    for path in (copy / "search/2/config.pbtxt", copy / "search/config.pbtxt"):
        path.write_text("# of another version")
    Manifest.read(copy / "recommend/1").verify(copy)
    assert already_published(checkpoint_folder, copy, CONFIG) is None


def test_everything_that_determines_a_bundle_counts(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, ranker = (Path(shutil.copytree(checkpoint_folder, tmp_path / name)) for name in ("copy", "ranker"))
    seen = [inputs_sha256(checkpoint_folder, CONFIG)]
    assert inputs_sha256(copy, CONFIG) == seen[0], "where a checkpoint lies does not matter"
    seen.append(inputs_sha256(copy, dataclasses.replace(CONFIG, candidates=7)))
    seen.append(inputs_sha256(copy, dataclasses.replace(CONFIG, ranker=ranker)))
    for folder, config in ((copy, CONFIG), (ranker, dataclasses.replace(CONFIG, ranker=ranker))):
        listed = json.loads((folder / "config.json").read_text())
        listed["files"]["model.safetensors"] = "0" * 64
        (folder / "config.json").write_text(json.dumps(listed))
        seen.append(inputs_sha256(copy, config))
    with monkeypatch.context() as patch:
        patch.setattr(unchanged, "tool_versions", lambda: {"torch": "0.1"})
        seen.append(inputs_sha256(copy, CONFIG))
    with monkeypatch.context() as patch:
        patch.setattr(unchanged, "_sources", lambda: "other")
        seen.append(inputs_sha256(copy, CONFIG))
    assert len(set(seen)) == len(seen) == 7


def test_sources_are_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fuserec"
    for name in ("export/a.py", "model_repository/m/config.pbtxt", "manifest.py", "train/b.py", "export/c.pyc"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("1")
    monkeypatch.setattr(unchanged, "__file__", str(package / "export" / "unchanged.py"))
    hashes = [unchanged._sources()]
    for name, counts in (("export/a.py", 1), ("train/b.py", 0), ("model_repository/m/config.pbtxt", 1)):
        (package / name).write_text("2")
        hashes.append(unchanged._sources())
        assert (hashes[-1] != hashes[-2]) == counts, name


def test_data_fingerprint_is_of_items_and_users(checkpoint_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint_folder, tmp_path / "copy"))
    before = data_fingerprint(copy)
    for name, counts in (("model.safetensors", False), ("users.parquet", True)):
        listed = json.loads((copy / "config.json").read_text())
        listed["files"][name] = "0" * 64
        (copy / "config.json").write_text(json.dumps(listed))
        assert (data_fingerprint(copy) != before) == counts, name


def test_the_command_finds_it_without_torch(checkpoint_folder: Path, repository: Path) -> None:
    arguments = ["fuserec", "export", str(checkpoint_folder), "--repository", str(repository)]
    arguments += ["--target", "sm89", "--precision", "int8", "--accept-quality-loss"]
    code = (
        f"import sys; from fuserec import cli; sys.argv = {arguments}\n"
        "try: cli.main()\n"
        'finally: sys.stderr.write(f\'imported: {[name for name in ("torch", "onnx") if name in sys.modules]}\')'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "version 1 already holds this export" in done.stderr
    assert done.stderr.endswith("imported: []")
