"""Id maps are the same or they only add; what gives an id another number is refused, with the count."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from fuserec.errors import CheckpointError, DataError, ExportError
from fuserec.evaluators import open_evaluator
from fuserec.export.ids import require_served_numbers
from fuserec.export.rollout import publish
from fuserec.export.sources import load_sources
from fuserec.id_map import IdMap, IdMaps, disagreements, require_same_numbers
from fuserec.manifest import FileRecord, Manifest
from fuserec.models.checkpoint import Checkpoint

Command = Callable[..., tuple[int, str]]


def items(**numbers: int) -> IdMap:
    return IdMap("items", pl.DataFrame({"item_id": numbers.values(), "original": numbers.keys()}))


def of(**numbers: int) -> IdMaps:
    return IdMaps(items=items(**numbers))


def test_a_fingerprint_is_of_the_map_and_not_of_its_file() -> None:
    content = b"".join(number.to_bytes(8, "little") for number in (2, 3, 7, 1, 2)) + "aé".encode()
    assert items(**{"é": 7, "a": 3}).fingerprint == hashlib.sha256(content).hexdigest()
    assert items(a=3, b=7).fingerprint != items(a=7, b=3).fingerprint
    assert items(ab=1, c=2).fingerprint != items(a=1, bc=2).fingerprint


@pytest.mark.parametrize(
    ("other", "told"),
    [
        pytest.param({"a": 1, "b": 2, "c": 3}, "", id="the same"),
        pytest.param({"a": 1, "b": 2, "c": 3, "d": 4}, "", id="one more"),
        pytest.param({"d": 4}, "", id="none in common"),
        pytest.param({"a": 2, "b": 3, "c": 4, "0": 1}, "3 of 3 item ids disagree, such as 'a': 1 in A, 2", id="all"),
        pytest.param({"a": 1, "c": 4}, "1 of 3 item ids disagree, such as 'c': 3 in A, 4 in B", id="one moved"),
        pytest.param(
            {"a": 1, "x": 3}, "1 of 3 item ids disagree, such as 'c': 3 in A, which is another's in B", id="taken"
        ),
    ],
)  # fmt: skip
def test_what_disagrees_is_counted(other: dict[str, int], told: str) -> None:
    found = disagreements(of(a=1, b=2, c=3), "A", of(**other), "B")
    assert len(found) == bool(told) and "".join(found).startswith(told)


def test_where_one_has_no_map_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_same_numbers(IdMaps(), "A", of(**{"5": 5}), "B", DataError, "")
        assert caplog.text == "", "ids that stand for themselves need no map"
        require_same_numbers(IdMaps(), "A", of(a=5), "B", DataError, "")
    assert "B says which items its numbers are and A does not" in caplog.text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item_id": [1, 1], "original": ["a", "b"]}, r"ids_items.parquet has 1 values of item_id twice"),
        ({"item_id": [1, 2], "original": ["a", "a"]}, r"has 1 values of original twice"),
        ({"item_id": [1, None], "original": ["a", "b"]}, r"has 1 nulls in item_id"),
        ({"item_id": ["1"], "original": ["a"]}, r"has columns item_id String"),
    ],
)
def test_a_map_that_is_none_is_refused(table: dict[str, list[object]], message: str, tmp_path: Path) -> None:
    pl.DataFrame(table).write_parquet(tmp_path / "ids_items.parquet")
    with pytest.raises(DataError, match=message):
        IdMaps.read(tmp_path, DataError)


@pytest.fixture
def numbered(untrained: Callable[[str, Path], None], tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a checkpoint with a map of its items, each number moved on by some places."""

    def write(name: str, moved: int, architecture: str = "two-tower") -> Path:
        untrained(architecture, tmp_path / name)
        checkpoint = Checkpoint.load(tmp_path / name)
        numbers = checkpoint.items["item_id"].to_list()
        originals = [f"SKU-{number}" for number in numbers[moved:] + numbers[:moved]]
        known = IdMap("items", pl.DataFrame({"item_id": numbers, "original": originals}))
        # As one that was trained: an empty recipe is one of defaults.
        dataclasses.replace(checkpoint, ids=IdMaps(items=known), metrics={"recipe": {}}).save(tmp_path / name)
        return tmp_path / name

    return write


def test_a_checkpoint_carries_its_map(numbered: Callable[..., Path]) -> None:
    folder = numbered("checkpoint", 0)
    checkpoint = Checkpoint.load(folder)
    assert checkpoint.ids.items is not None and checkpoint.ids.users is None
    assert checkpoint.ids.items.table.row(0) == (1000, "SKU-1000")
    config = json.loads((folder / "config.json").read_text())
    assert config["ids"] == {"items": checkpoint.ids.items.fingerprint}
    config["ids"] = {"items": "0" * 64}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="ids is"):
        Checkpoint.load(folder)


def test_a_ranker_of_other_numbers_is_refused(numbered: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="300 of 300 item ids disagree, such as 'SKU-1000'"):
        load_sources(numbered("a", 0), numbered("b", 1, "ranker-mlp"))
    assert load_sources(tmp_path / "a", numbered("c", 0, "ranker-mlp")).ranker is not None


def test_evaluation_on_other_numbers_is_refused(
    numbered: Callable[..., Path], fuserec: Command, tmp_path: Path
) -> None:
    data = write_data(Checkpoint.load(numbered("a", 0)), tmp_path / "data")
    moved = numbered("b", 2)
    status, said = fuserec("evaluate", moved, "--data", data)
    assert (status, "300 of 300 item ids disagree" in said, "fuserec data import --ids" in said) == (1, True, True)
    assert fuserec("evaluate", tmp_path / "a", "--data", data)[0] == 0
    assert open_evaluator(str(moved), 1.0).ids.fingerprints == Checkpoint.load(moved).ids.fingerprints


def test_a_teacher_and_a_start_of_other_numbers_are_refused(
    numbered: Callable[..., Path], fuserec: Command, tmp_path: Path
) -> None:
    data = write_data(Checkpoint.load(numbered("a", 0)), tmp_path / "data")
    moved, out = numbered("b", 1), tmp_path / "out"
    status, said = fuserec("train", "--continue", moved, "--data", data, "--out", out)
    assert (status, "300 of 300 item ids disagree" in said) == (1, True), said
    status, said = fuserec("train", "distill", "--teacher", moved, "--student", "gru4rec", "--data", data, "--out", out)
    assert (status, "300 of 300 item ids disagree" in said) == (1, True), said
    assert not out.exists()


def test_a_bundle_carries_the_map_and_publishing_compares_it(repository: Path, tmp_path: Path) -> None:
    """The bundle is made by hand: a build would take what is tested here no further."""
    served, same, other = (tmp_path / name for name in ("served", "same", "other"))
    for folder, known in ((served, items(a=1, b=2)), (same, items(a=1, b=2, c=3)), (other, items(a=2, b=3))):
        with_map(repository, folder, known)
    assert Manifest.read(served / "recommend" / "1").ids == {"items": items(a=1, b=2).fingerprint}
    before = {path: path.stat().st_mtime_ns for path in served.rglob("*")}
    with pytest.raises(ExportError, match=r"2 of 2 item ids disagree, such as 'a': 2 in .*, 1 in .*--accept-new-ids"):
        publish(other, served)
    assert {path: path.stat().st_mtime_ns for path in served.rglob("*")} == before
    assert publish(same, served) == 2
    assert publish(other, served, accept_new_ids=True) == 3
    with pytest.raises(ExportError, match="2 of 2 item ids disagree"):
        require_served_numbers(served, of(a=1, b=2), "the checkpoint")
    require_served_numbers(tmp_path / "absent", of(a=1), "the checkpoint")


def with_map(repository: Path, folder: Path, known: IdMap) -> None:
    shutil.copytree(repository, folder, ignore=shutil.ignore_patterns("*.pyc", "__pycache__"))
    bundle = folder / "recommend" / "1"
    IdMaps(items=known).write(bundle)
    manifest = Manifest.read(bundle)
    files = manifest.files | {"recommend/ids_items.parquet": FileRecord.of(bundle / "ids_items.parquet")}
    dataclasses.replace(manifest, ids={"items": known.fingerprint}, files=files).write(bundle)


def write_data(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write what a checkpoint knows as the data folder it could be from."""
    folder.mkdir()
    lengths = checkpoint.users["history"].list.len()
    rows = checkpoint.users.with_columns(timestamp=pl.int_ranges(lengths.cast(pl.Int64)))
    rows = rows.explode("history", "timestamp").rename({"history": "item_id"})
    rows.select("user_id", "item_id", "timestamp").write_parquet(folder / "interactions.parquet")
    checkpoint.items.drop("count").write_parquet(folder / "items.parquet")
    checkpoint.ids.write(folder)
    return folder


def test_maps_of_two_imports_are_joined() -> None:
    joined = of(a=1, b=2).joined(of(b=2, c=3))
    assert joined.items is not None and joined.items.table.rows() == [(1, "a"), (2, "b"), (3, "c")]
