"""What a server is shown holds no bytecode that somebody else may have put there."""

import shutil
from pathlib import Path

import pytest

from fuserec.errors import BundleError
from fuserec.manifest import Manifest
from fuserec.serve.settings import ServingConfig
from fuserec.serve.view import View


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))


def test_bytecode_beside_the_code_is_removed_before_it_is_shown(copy: Path, tmp_path: Path) -> None:
    """A version that is swapped to as well: its bytecode would run in the place of what was verified."""
    planted = copy / "encode" / "1" / "__pycache__"
    planted.mkdir()
    (planted / "model.cpython-311.pyc").write_bytes(b"not what model.py says")
    manifest = Manifest.read(copy / "recommend" / "1")
    View(tmp_path / "view", copy, ServingConfig()).show(manifest, manifest.models)
    assert not planted.exists()


def test_bytecode_that_is_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (copy / "encode" / "1" / "__pycache__").symlink_to(elsewhere)
    manifest = Manifest.read(copy / "recommend" / "1")
    with pytest.raises(BundleError, match="__pycache__ is a link"):
        View(tmp_path / "view", copy, ServingConfig()).show(manifest, manifest.models)
