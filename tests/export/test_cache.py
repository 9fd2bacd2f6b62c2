"""What was built is not built again; what is damaged is; and there is an end to how much is kept."""

import os
from pathlib import Path

import pytest

from fuserec.export import cache
from fuserec.export.cache import cached


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEREC_CACHE", str(tmp_path))
    return tmp_path / "engines"


def test_the_same_inputs_give_what_was_built(folder: Path) -> None:
    assert cached(lambda: b"first", b"graph", "sm89") == (b"first", False)
    assert cached(lambda: b"second", b"graph", "sm89") == (b"first", True)


@pytest.mark.parametrize("inputs", [(b"graph", "sm80"), (b"graph2", "sm89"), (b"graphsm89",), (b"graph", "sm8", "9")])
def test_other_inputs_do_not(folder: Path, inputs: tuple[bytes | str, ...]) -> None:
    cached(lambda: b"first", b"graph", "sm89")
    assert cached(lambda: b"second", *inputs) == (b"second", False)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_entry_is_built_again(folder: Path, damage: str) -> None:
    cached(lambda: b"first", b"graph")
    [entry] = folder.iterdir()
    data = entry.read_bytes()
    entry.write_bytes({"flipped": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "empty": b""}[damage])
    assert cached(lambda: b"second", b"graph") == (b"second", False)
    assert cached(lambda: b"third", b"graph") == (b"second", True)


def test_the_least_recently_used_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST_BYTES", 3 * (32 + 8))
    for age, name in enumerate(("old", "older", "oldest")):
        cached(lambda: b"12345678", name)
        [newest] = [path for path in folder.iterdir() if path.stat().st_mtime > 2e6]
        os.utime(newest, (1e6 - age, 1e6 - age))
    assert cached(lambda: b"", "oldest")[1], "using an entry makes it the youngest"
    cached(lambda: b"12345678", "new")
    assert [cached(lambda: b"12345678", name)[1] for name in ("oldest", "old", "new")] == [True, True, True]
    assert not cached(lambda: b"12345678", "older")[1]


def test_a_build_that_fails_leaves_nothing(folder: Path) -> None:
    def fail() -> bytes:
        raise ValueError("no such luck")

    with pytest.raises(ValueError, match="no such luck"):
        cached(fail, b"graph")
    assert not folder.exists() or not list(folder.iterdir())
