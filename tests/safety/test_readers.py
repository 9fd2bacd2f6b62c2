"""Whatever lies in the place of a file, the readers refuse it by its name, and nothing of it runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fuserec.catalogue import Catalogue
from fuserec.errors import BundleError, CheckpointError, DataError
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest
from fuserec.models.checkpoint import HASHED_FILES, Checkpoint
from fuserec.serve.launcher import Address
from fuserec.serve.pipeline import Pipeline
from fuserec.train.data import read_folder
from fuserec.train.resume import STATE_FILE, SavedRun
from tests.safety.hostile import CONTENTS, put_into_bundle, put_into_checkpoint

BUNDLE_FILES = ("items.parquet", "users.parquet", "index.safetensors", "engines/user_tower.cpu.onnx", "manifest.json")
contents = pytest.mark.parametrize("content", CONTENTS, ids=lambda make: make.__name__)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


@pytest.fixture
def checkpoint(checkpoint_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def text_checkpoint(untrained: Callable[[str, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "checkpoint"
    untrained("text", folder)
    return folder


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository")) / "recommend" / "1"


def test_the_pickles_would_run(marker: Path) -> None:
    import pickle  # noqa: TID251

    for make in CONTENTS[:1]:
        pickle.loads(make(marker))  # noqa: S301
        assert marker.exists()


@contents
@pytest.mark.parametrize("name", [*HASHED_FILES, "config.json"])
def test_checkpoint(checkpoint: Path, marker: Path, name: str, content: Callable[[Path], bytes]) -> None:
    put_into_checkpoint(checkpoint, name, content(marker))
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.load(checkpoint)
    assert not marker.exists()


@contents
def test_tokenizer(text_checkpoint: Path, tmp_path: Path, marker: Path, content: Callable[[Path], bytes]) -> None:
    from fuserec.tokens import Tokenizer

    path = tmp_path / "tokenizer.json"
    path.write_bytes(content(marker))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.read(path, max_tokens=4, pad_id=0)
    assert not marker.exists()


@contents
@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_bundle_whose_hashes_agree(copied: Path, marker: Path, name: str, content: Callable[[Path], bytes]) -> None:
    put_into_bundle(copied, name, content(marker))
    with pytest.raises(BundleError, match=name):
        Pipeline.open(copied)
    assert not marker.exists()


@contents
def test_index(tmp_path: Path, marker: Path, content: Callable[[Path], bytes]) -> None:
    path = tmp_path / "items.index"
    path.write_bytes(content(marker))
    with pytest.raises(BundleError, match=r"items\.index"):
        ItemIndex.load(path)
    assert not marker.exists()


@contents
def test_catalogue(tmp_path: Path, marker: Path, content: Callable[[Path], bytes]) -> None:
    path = tmp_path / "items.parquet"
    path.write_bytes(content(marker))
    with pytest.raises(BundleError, match=r"items\.parquet"):
        Catalogue.open(path)
    assert not marker.exists()


@contents
def test_resumed_run(tmp_path: Path, marker: Path, content: Callable[[Path], bytes]) -> None:
    (tmp_path / STATE_FILE).write_bytes(content(marker))
    with pytest.raises(CheckpointError, match=STATE_FILE):
        SavedRun.load(tmp_path)
    assert not marker.exists()


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    pl.DataFrame({"user_id": [1] * 3, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]}).write_parquet(
        folder / "interactions.parquet"
    )
    pl.DataFrame({"item_id": [1, 2, 3], "title": ["a", "b", "c"]}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": [1], "age": ["x"]}).write_parquet(folder / "users.parquet")
    assert read_folder(folder).items.height == 3
    return folder


@contents
@pytest.mark.parametrize("name", ["interactions", "items", "users"])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_data_folder(data_folder: Path, marker: Path, name: str, kind: str, content: Callable[[Path], bytes]) -> None:
    (data_folder / f"{name}.parquet").unlink()
    (data_folder / f"{name}.{kind}").write_bytes(content(marker))
    with pytest.raises(DataError, match=f"{name}.{kind}"):
        read_folder(data_folder)
    assert not marker.exists()


def edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(changes)


def edit_arguments(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["arguments"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(edit(format=["fuserec-checkpoint"]), id="format in a list"),
        pytest.param(edit(version="1"), id="version as a text"),
        pytest.param(edit(files=list(HASHED_FILES)), id="files without hashes"),
        pytest.param(edit(files=dict.fromkeys(HASHED_FILES, None)), id="no hashes"),
        pytest.param(edit(files={**dict.fromkeys(HASHED_FILES, ""), "../config.json": ""}), id="file outside"),
        pytest.param(edit(arguments=[]), id="arguments in a list"),
        pytest.param(edit(architecture="../two-tower"), id="architecture with a path"),
        pytest.param(edit_arguments(n_items=-1), id="negative items"),
        pytest.param(edit_arguments(n_items=True), id="a bool for items"),
        pytest.param(edit_arguments(n_items=2**62), id="2^62 items"),
        pytest.param(edit_arguments(dim=2**40), id="wide vectors"),
        pytest.param(edit_arguments(dim=2**62), id="vectors too wide to be counted"),
        pytest.param(edit_arguments(n_blocks=10**9), id="a billion layers"),
        pytest.param(edit_arguments(n_heads=0), id="no heads"),
        pytest.param(edit_arguments(dropout=10**400), id="number beyond 64 bits"),
        pytest.param(edit_arguments(dropout=float("nan")), id="NaN"),
        pytest.param(edit_arguments(dropout="0.1"), id="a text for a number"),
    ],
)
def test_config_that_makes_no_sense(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = checkpoint / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"config\.json|items\.parquet has 300 rows; expected"):
        Checkpoint.load(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"num_hidden_layers": 10**9}, id="a billion layers"),
        pytest.param({"hidden_size": -5}, id="negative size"),
        pytest.param({"hidden_size": "x"}, id="a text for a size"),
        pytest.param({"num_attention_heads": 0}, id="no heads"),
        pytest.param({"hidden_act": "os.system"}, id="unknown function"),
        pytest.param({"dtype": "load"}, id="unknown dtype"),
        pytest.param({"model_type": "../evil"}, id="model type with a path"),
        pytest.param({"model_type": None}, id="no model type"),
    ],
)
def test_encoder_that_makes_no_sense(text_checkpoint: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(text_checkpoint, tmp_path / "checkpoint"))
    document = json.loads((folder / "config.json").read_text())
    document["arguments"]["encoder"] = json.dumps(json.loads(document["arguments"]["encoder"]) | change)
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "recommend/../../x", "/etc/passwd", "recommend//x", "recommend/a\0/../../b"]
)
def test_manifest_that_leads_out_of_the_folder(copied: Path, name: str) -> None:
    path = copied / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="files has"):
        Manifest.read(copied)


TABLES = {
    "users.parquet": [
        pl.DataFrame({"user_id": [1.0], "history": [[1]]}),
        pl.DataFrame({"user_id": [1], "history": [["a"]]}),
        pl.DataFrame({"user_id": [1]}),
        pl.DataFrame({"user_id": [None], "history": [[1]]}, schema_overrides={"user_id": pl.Int64}),
        pl.DataFrame({"user_id": [1], "history": [[1, None]]}),
        pl.DataFrame({"user_id": [1, 2], "history": [[1], None]}),
    ],
    "items.parquet": [
        pl.DataFrame({"item_id": ["1"], "count": [1]}),
        pl.DataFrame({"item_id": [1], "count": [0.5]}),
        pl.DataFrame({"item_id": [1, None], "count": [1, 1]}),
        pl.DataFrame({"item_id": [1], "count": [1]}),
    ],
}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        pytest.param(name, table, id=f"{name}-{at}")
        for name, tables in TABLES.items()
        for at, table in enumerate(tables)
    ],
)
def test_table_of_another_schema_in_a_bundle(copied: Path, tmp_path: Path, name: str, table: pl.DataFrame) -> None:
    table.write_parquet(tmp_path / "other.parquet")
    put_into_bundle(copied, name, (tmp_path / "other.parquet").read_bytes())
    with pytest.raises(BundleError, match=name):
        Pipeline.open(copied)


def test_files_of_a_bundle_that_do_not_fit_each_other(copied: Path, tmp_path: Path) -> None:
    ItemIndex.build(np.ones((3, 5), np.float32)).save(tmp_path / "other")
    put_into_bundle(copied, "index.safetensors", (tmp_path / "other").read_bytes())
    with pytest.raises(BundleError, match=r"index\.safetensors has 3 items of 5 numbers"):
        Pipeline.open(copied)


def test_server_is_on_loopback_unless_told_otherwise() -> None:
    assert Address().is_loopback
    assert Address.free().is_loopback
    assert not Address(host="0.0.0.0").is_loopback
