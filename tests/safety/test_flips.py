"""One byte that is not what it was, anywhere, and the whole is refused."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.errors import BundleError, CheckpointError
from fuserec.manifest import Manifest
from fuserec.models.checkpoint import Checkpoint

flips = settings(max_examples=60, deadline=None, derandomize=True)


def flip(data: st.DataObject, files: list[Path]) -> tuple[Path, bytes]:
    """Change one byte of one of the files; return it and what it held."""
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    changed = before[at] ^ data.draw(st.integers(1, 255))
    path.write_bytes(before[:at] + bytes([changed]) + before[at + 1 :])
    return path, before


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path_factory.mktemp("flips") / "checkpoint"))


@flips
@given(data=st.data())
def test_checkpoint(checkpoint: Path, data: st.DataObject) -> None:
    """Of `config.json` nothing keeps a hash: what it says is compared with the other files instead."""
    path, before = flip(data, sorted(path for path in checkpoint.iterdir() if path.name != "config.json"))
    try:
        with pytest.raises(CheckpointError, match=path.name):
            Checkpoint.load(checkpoint)
    finally:
        path.write_bytes(before)


@flips
@given(data=st.data())
def test_config_of_a_checkpoint_is_refused_or_as_good(checkpoint: Path, data: st.DataObject) -> None:
    whole = Checkpoint.load(checkpoint)
    path, before = flip(data, [checkpoint / "config.json"])
    try:
        loaded = Checkpoint.load(checkpoint)
        # What is left can only be a number without a shape, such as dropout, or a space.
        assert loaded.state.keys() == whole.state.keys()
    except CheckpointError as error:
        assert "config.json" in str(error) or "expected" in str(error)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def copied(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(repository, tmp_path_factory.mktemp("flips") / "repository"))


@flips
@given(data=st.data())
def test_bundle(copied: Path, data: st.DataObject) -> None:
    bundle = copied / "recommend" / "1"
    names = Manifest.read(bundle).files
    paths = [copied / model / "1" / file for model, _, file in (name.partition("/") for name in names)]
    path, before = flip(data, [*paths, copied / "search" / "config.pbtxt"])
    try:
        with pytest.raises(BundleError, match=f"{path.name}.*was changed after it was published"):
            Manifest.read(bundle).verify(copied)
    finally:
        path.write_bytes(before)


@flips
@given(data=st.data())
def test_manifest_is_refused_or_reads_the_same_files(copied: Path, data: st.DataObject) -> None:
    """A note of its own, such as a score, may change; what is read, and what it must be, may not."""
    bundle = copied / "recommend" / "1"
    files = Manifest.read(bundle).files
    path, before = flip(data, [bundle / "manifest.json"])
    try:
        changed = Manifest.read(bundle)
        changed.verify(copied)
        assert changed.files == files
    except BundleError as error:
        assert "export again" in str(error) or str(path) in str(error)
    finally:
        path.write_bytes(before)
