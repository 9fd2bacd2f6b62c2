"""The bench of the search measures what it says, for every contender, and writes it where it was asked to."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bench import _limits, search
from bench._rivals import RIVALS, without

SMALL = ["--rows", "500", "2000", "--dim", "16", "--k", "5", "--batch", "1", "3", "--rounds", "3"]


@pytest.fixture(autouse=True)
def _no_measured_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "read_bytes_a_second", lambda _: 1e10)
    monkeypatch.setattr(_limits, "multiply_adds_a_second", lambda _: 1e11)


def normal(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(RIVALS))
def test_rivals_answer_the_same_question(name: str) -> None:
    items, queries = normal(300, 16, 0), normal(4, 16, 1)
    want = np.argsort(-(queries @ items.T), axis=1)[:, :7]
    for found in RIVALS[name](items, 2).values():
        assert np.asarray(found(queries, 7)).tolist() == want.tolist()


def test_filtered_rivals_return_nothing_that_is_excluded() -> None:
    items, queries = normal(300, 16, 0), normal(4, 16, 1)
    exclude = np.argsort(-(queries @ items.T), axis=1)[:, 1:4]
    for found in RIVALS["faiss"](items, 2).values():
        got = without(found, exclude)(queries, 5)
        assert got.shape == (4, 5)
        assert not any(np.isin(row, out).any() for row, out in zip(got, exclude, strict=True))


def test_table_csv_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--csv", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "rows.png")]
    assert search.main([*SMALL, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and len(lines) == 5
    assert {(row["rows"], row["batch"]) for row in rows} == {("500", "1"), ("500", "3"), ("2000", "1"), ("2000", "3")}
    for row in rows:
        assert float(row["x_faiss"]) == pytest.approx(float(row["faiss_ms"]) / float(row["fuserec_ms"]), rel=0.1)
        assert float(row["certified"]) == 1
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*tmp*"))


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([*SMALL, "--rivals", "torch", "--metric", "cosine", "--exclude", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["metric"] for row in rows] == ["cosine"] * 4
    assert all("torch_ms" in row and "faiss_ms" not in row for row in rows)


def test_the_limit_is_the_slower_of_reading_and_multiplying() -> None:
    one, many = (next(search.run(search.parse([*SMALL, "--rivals", "--batch", batch]))) for batch in ("1", "1000"))
    assert one["limit"] == "read" and many["limit"] == "int8"
    assert many["limit_ms"] == pytest.approx(1000 * 500 * 16 / 1e11 * 1e3, abs=1e-3)
    assert many["of_limit_pct"] == pytest.approx(100 * many["limit_ms"] / many["fuserec_ms"], rel=0.1, abs=0.05)


def test_the_sweep_has_the_cases_that_the_aims_are_about() -> None:
    found = search.cases(search.parse(["--sweep", "--batch", "1", "64"]))
    assert {case.batch for case in found} == {1, 64}
    assert {case.k for case in found if case.rows == 10_000} == {1, 10, 100, 1000}
    assert {case.dim for case in found} == {64, 128, 256}
    assert any(case.exclude for case in found) and any(case.metric == "cosine" for case in found)
    assert any(case.rows == 10_000_000 and case.dim == 64 for case in found)


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--k", "many"], ["--rivals", "scann"]])
def test_what_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search.parse(arguments)
    assert arguments[0] in capsys.readouterr().err
