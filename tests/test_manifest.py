"""A bundle is what was published, or it is refused with the name of what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fuserec.errors import BundleError
from fuserec.manifest import Manifest, bundle_folder

BUNDLE = "recommend/1"


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(field: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        document = json.loads(path.read_text())
        document[field] = value
        path.write_text(json.dumps(document))

    return change


def test_round_trip(bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.version == 1
    manifest.write(tmp_path / "recommend" / "1")
    assert Manifest.read(tmp_path / "recommend" / "1") == manifest


def test_every_file_is_listed_and_intact(repository: Path) -> None:
    manifest = Manifest.read(repository / BUNDLE)
    # A server of another test may be running over it, which caches bytecode until it stops.
    found = [path for path in repository.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    on_disk = {str(path.relative_to(repository)) for path in found}
    of_no_version = {".fuserec.lock", *(f"{model}/config.pbtxt" for model in manifest.models)}
    listed = {manifest.path_of(name) for name in manifest.files}
    assert listed == on_disk - of_no_version - {f"{BUNDLE}/manifest.json"}
    manifest.verify(repository)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        pytest.param(
            "engines/user_tower.cpu.onnx", flip_one_bit, "was changed after it was published", id="one bit of an engine"
        ),
        pytest.param(
            "index.safetensors", flip_one_bit, "was changed after it was published", id="one bit of the index"
        ),
        pytest.param("users.parquet", Path.unlink, "is missing", id="file removed"),
        pytest.param(
            "engines/user_tower.sm89.engine", lambda p: p.write_bytes(b"x"), "has 1 bytes", id="file cut short"
        ),
    ],
)
def test_damaged_file_is_named(copy: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(copy / BUNDLE / name)
    with pytest.raises(BundleError, match=f"{name}.*{message}"):
        Manifest.read(copy / BUNDLE).verify(copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(Path.unlink, "is missing", id="removed"),
        pytest.param(lambda p: p.write_text("{"), "is not JSON", id="cut short"),
        pytest.param(lambda p: p.write_bytes(b"\xff\xfe"), "is not JSON", id="not text"),
        pytest.param(lambda p: p.write_text("[" * 100_000), "is not JSON", id="nested deep"),
        pytest.param(lambda p: p.write_text("[]"), "holds a JSON list", id="not an object"),
        pytest.param(edit("format", "other"), "format 'other' version 3", id="another format"),
        pytest.param(edit("format_version", 99), "version 99", id="another version"),
        pytest.param(edit("surprise", 1), "does not have the fields", id="unknown field"),
        pytest.param(edit("files", {"a": 1}), "does not have the fields", id="wrong type"),
    ],
)
def test_damaged_manifest_is_refused(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy / BUNDLE / "manifest.json")
    with pytest.raises(BundleError, match=message):
        Manifest.read(copy / BUNDLE)


def test_newest_bundle_is_chosen_by_number(copy: Path) -> None:
    for version in ("2", "10"):
        shutil.copytree(copy / BUNDLE, copy / "recommend" / version)
    assert bundle_folder(copy).name == "10"


def test_folder_without_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        bundle_folder(tmp_path)
    with pytest.raises(BundleError, match="not a folder"):
        bundle_folder(tmp_path / "absent")
