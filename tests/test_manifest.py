"""A bundle is what was published, or it is refused with the name of what is wrong."""

import json
import re
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
    "name",
    [
        pytest.param("recommend/1/coverage.py", id="module that shadows one"),
        pytest.param("encode/1/cffi.py", id="in another model"),
        pytest.param("recommend/1/numpy/__init__.py", id="package"),
        pytest.param("recommend/1/engines/user_tower.bin", id="data beside an engine"),
        pytest.param("recommend/1/.hidden", id="hidden"),
        pytest.param("recommend/1/manifest.json.bak", id="copy"),
        pytest.param("search/1/manifest.json", id="manifest that is none"),
        pytest.param("recommend/1/engines/__pycache__/x.pyc", id="bytecode of nothing"),
    ],
)
def test_file_that_is_not_listed_is_refused(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("raise SystemExit")
    with pytest.raises(BundleError, match="is not listed in the manifest") as caught:
        Manifest.read(copy / BUNDLE).verify(copy)
    assert str(copy / Path(*Path(name).parts[:2])) in str(caught.value)


def test_folders_and_links_that_are_not_listed_are_refused(copy: Path) -> None:
    manifest = Manifest.read(copy / BUNDLE)
    (copy / BUNDLE / "cffi").mkdir()
    with pytest.raises(BundleError, match=r"cffi is not listed"):
        manifest.verify(copy)
    (copy / BUNDLE / "cffi").rmdir()
    (copy / BUNDLE / "tokens").symlink_to(copy / BUNDLE / "engines")
    with pytest.raises(BundleError, match=r"tokens is not listed"):
        manifest.verify(copy)
    (copy / BUNDLE / "tokens").unlink()
    # A folder that is listed, somewhere else: what more lies there cannot be told apart.
    (copy / BUNDLE / "engines").rename(copy / "elsewhere")
    (copy / BUNDLE / "engines").symlink_to(copy / "elsewhere")
    with pytest.raises(BundleError, match=r"engines is not listed"):
        manifest.verify(copy)


def test_what_python_caches_of_the_code_is_no_matter_here(copy: Path) -> None:
    (copy / BUNDLE / "__pycache__").mkdir()
    (copy / BUNDLE / "__pycache__" / "model.cpython-311.pyc").touch()
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
        pytest.param(edit("version", 7), "unknown field 'version'", id="a number of its own"),
        pytest.param(edit("files", {"a": 1}), r"files\.a is a int, expected a dict", id="wrong type"),
        pytest.param(edit("n_items", True), "n_items is a bool, expected a int", id="a bool for a number"),
        pytest.param(edit("models", ["encode"]), "models came as", id="no front door"),
        pytest.param(edit("models", ["recommend", "../x"]), "models came as", id="unknown model"),
        pytest.param(edit("files", {}), "files lacks 'encode/config.pbtxt'", id="nothing to compare with"),
        pytest.param(lambda p: p.write_bytes(b" " * (16 * 2**20 + 1)), "has more than 16777216 bytes", id="too large"),
    ],
)
def test_damaged_manifest_is_refused(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy / BUNDLE / "manifest.json")
    with pytest.raises(BundleError, match=message):
        Manifest.read(copy / BUNDLE)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("recommend/../../secret", id="upwards"),
        pytest.param("recommend//etc/passwd", id="empty part"),
        pytest.param("recommend/./index.safetensors", id="dot"),
        pytest.param("recommend\\..\\secret", id="backslash"),
        pytest.param("recommend/..\\secret", id="backslash inside"),
        pytest.param("rank/model.py", id="a model that is not served"),
        pytest.param("recommend", id="no file"),
        pytest.param("", id="nothing"),
    ],
)
def test_name_that_leads_out_of_its_model_is_refused(copy: Path, name: str) -> None:
    path = copy / BUNDLE / "manifest.json"
    files = json.loads(path.read_text())["files"]
    edit("files", {**files, name: {"bytes": 1, "sha256": "0" * 64}})(path)
    with pytest.raises(BundleError, match=f"files has {re.escape(repr(name))}"):
        Manifest.read(copy / BUNDLE)


def test_engine_that_is_not_listed_is_refused(copy: Path) -> None:
    path = copy / BUNDLE / "manifest.json"
    document = json.loads(path.read_text())
    document["parts"]["user_tower"]["engines"]["cpu"]["file"] = "../../other/model.onnx"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"files lacks 'recommend/\.\./\.\./other/model.onnx'"):
        Manifest.read(copy / BUNDLE)


@pytest.mark.parametrize("name", [f"{BUNDLE}/items.parquet", "recommend/config.pbtxt"])
def test_link_out_of_the_repository_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a link that leads out of the repository"):
        Manifest.read(copy / BUNDLE).verify(copy)


@pytest.mark.parametrize("name", ["latest", "0", "01", "-1", "²"])
def test_folder_that_is_no_version_is_passed_over(copy: Path, name: str) -> None:
    (copy / BUNDLE).rename(copy / "recommend" / name)
    with pytest.raises(BundleError, match="holds no bundle"):
        bundle_folder(copy)
    with pytest.raises(BundleError, match="is not a version"):
        Manifest.read(copy / "recommend" / name)


def test_version_that_is_not_there(repository: Path) -> None:
    with pytest.raises(BundleError, match="has no version 7; it has 1"):
        bundle_folder(repository, 7)


def test_newest_bundle_is_chosen_by_number(copy: Path) -> None:
    for version in ("2", "10"):
        shutil.copytree(copy / BUNDLE, copy / "recommend" / version)
    assert bundle_folder(copy).name == "10"


def test_folder_without_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        bundle_folder(tmp_path)
    with pytest.raises(BundleError, match="not a folder"):
        bundle_folder(tmp_path / "absent")
