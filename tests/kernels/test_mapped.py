"""An index whose file was edited after it was mapped gives no answer; one that was replaced or unlinked goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuserec.errors import BundleError
from fuserec.kernels import FileState, ItemIndex, KnownQueries

ROWS, DIM = 300, 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    embeddings = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    ItemIndex.build(embeddings, np.arange(ROWS) * 3).save(tmp_path / "index.safetensors")
    return tmp_path / "index.safetensors"


def edited_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4 * DIM, os.SEEK_END)
        file.write(np.full(DIM, 1e3, np.float32).tobytes())


def edited_under_its_old_time(path: Path) -> None:
    stat = path.stat()
    edited_in_place(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def copied_over(path: Path) -> None:
    other = path.with_name("other.safetensors")
    ItemIndex.build(np.ones((ROWS, DIM), np.float32), np.arange(ROWS)).save(other)
    shutil.copyfile(other, path)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


CHANGES = [edited_in_place, edited_under_its_old_time, copied_over, longer]


@pytest.mark.parametrize("change", CHANGES)
def test_no_answer_from_a_file_that_was_edited(path: Path, change: Callable[[Path], None]) -> None:
    index = ItemIndex.load(path)
    query = np.ones((1, DIM), np.float32)
    known = KnownQueries(
        index, np.ones((2, DIM), np.float32), index.excluded_rows(np.empty(0, np.int64), np.zeros(3, np.int64))
    )
    one = np.zeros(1, np.int64)
    index.search(query, 5), known.search(one, one, 5), index.vectors(np.array([3]))
    change(path)
    for ask in (
        lambda: index.search(query, 5),
        lambda: index.search(query, 5, backend="reference"),
        lambda: known.search(one, one, 5),
        lambda: known.search_joined(one, one, 5, one[:0], np.zeros(2, np.int64)),
        lambda: index.vectors(np.array([3])),
    ):
        with pytest.raises(BundleError, match=r"index\.safetensors was changed on disk after it was opened"):
            ask()


def replaced(path: Path) -> None:
    ItemIndex.build(np.ones((ROWS, DIM), np.float32), np.arange(ROWS)).save(path)


def linked(path: Path) -> None:
    path.with_name("kept").hardlink_to(path)


@pytest.mark.parametrize("change", [replaced, Path.unlink, linked])
def test_answers_stay_what_they_were(path: Path, change: Callable[[Path], None]) -> None:
    index = ItemIndex.load(path)
    query = np.ones((1, DIM), np.float32)
    before = index.search(query, 5)
    change(path)
    for _ in range(2):
        after = index.search(query, 5)
        np.testing.assert_array_equal(before.ids, after.ids)
        np.testing.assert_array_equal(before.scores, after.scores)


def test_edit_after_a_link_is_noticed(path: Path) -> None:
    index = ItemIndex.load(path)
    linked(path)
    index.search(np.ones((1, DIM), np.float32), 5)
    edited_in_place(path)
    with pytest.raises(BundleError, match="was changed on disk"):
        index.search(np.ones((1, DIM), np.float32), 5)


def test_edit_between_the_check_and_the_mapping_is_noticed(path: Path) -> None:
    seen = FileState.of(path)
    edited_in_place(path)
    with pytest.raises(BundleError, match="while it was opened"):
        ItemIndex.load(path).require_unchanged(since=seen)


def test_indexes_that_are_gone_hold_no_file(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        ItemIndex.load(path).search(np.ones((1, DIM), np.float32), 1)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208
