"""`fuserec data import`, `fuserec data feedback` and `fuserec recommend --log` as commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuserec import cli
from fuserec.client import Recommendations

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def fuserec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run the command in this process and in `tmp_path`; return its exit status and what it printed on stdout."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fuserec", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            captured = capsys.readouterr()
            return int(end.code or 0), captured.err if end.code else captured.out
        return 0, capsys.readouterr().out

    return run


@pytest.fixture
def files(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(
        "who,sku,when\nal,B,2024-01-02\nal,A,2024-01-01\nal,A,2024-01-01\nbo,C,2024-01-03\n"
    )
    (tmp_path / "products.csv").write_text("sku,label\nA,Apple\nB,\n")


IMPORT = ["data", "import", "--interactions", "orders.csv", "--items", "products.csv", "--out", "data"]
TOLD = ["--user-column", "who", "--time-column", "when", "--title-column", "label"]


@pytest.mark.usefixtures("files")
def test_import_says_what_it_did(fuserec: Command) -> None:
    status, output = fuserec(*IMPORT, *TOLD)
    assert status == 0, output
    for part in (
        "interactions who user",
        "time, as ISO 8601 dates",
        "label",
        "duplicate rows, left out: 1",
        "items that the item file lacks, added with their id as title: 1",
        "3 interactions of 2 users with 3 items in data",
        "next: fuserec train",
    ):
        assert " ".join(part.split()) in " ".join(output.split()), output


@pytest.mark.usefixtures("files")
def test_import_for_programs(fuserec: Command) -> None:
    status, output = fuserec(*IMPORT, *TOLD, "--json")
    assert status == 0, output
    report = json.loads(output)
    assert report["treated"]["titles_missing"] == 1
    assert (report["first"], report["last"]) == ("2024-01-01T00:00:00+00:00", "2024-01-03T00:00:00+00:00")


@pytest.mark.usefixtures("files")
def test_import_asks_for_the_column_it_cannot_find(fuserec: Command, tmp_path: Path) -> None:
    status, output = fuserec(*IMPORT)
    assert status == 1 and "give --user-column NAME" in output
    assert not (tmp_path / "data").exists()


def test_feedback_says_what_it_found(fuserec: Command, tmp_path: Path) -> None:
    (tmp_path / "served.jsonl").write_text(
        '{"user_id": 1, "timestamp": 100, "item_ids": [5, 6], "model_version": "3"}\n?\n'
    )
    (tmp_path / "actions.csv").write_text("user,item,time\n1,6,160\n1,7,160\n")
    command = ["data", "feedback", "--served", "served.jsonl", "--actions", "actions.csv", "--out", "new"]
    status, output = fuserec(*command)
    assert status == 0, output
    assert "1 malformed lines among the answers, left out: 2" in output
    assert "of 2 actions 1 (50.0%) were on an item shown at most 7 days before" in output
    status, output = fuserec(*command, "--within", "59s", "--json")
    assert json.loads(output)["actions_on_shown"] == 0
    status, output = fuserec(*command, "--within", "soon")
    assert status == 2 and "--within came as 'soon'" in output


def test_recommend_appends_to_the_log(fuserec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, url: str, *, timeout_ms: float) -> None: ...

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *error: object) -> None: ...

        def recommend(self, **question: object) -> Recommendations:
            ids, scores = np.array([7, 9, -1]), np.array([1.0, 0.5, -np.inf], dtype=np.float32)
            return Recommendations(ids, scores, model_version="4", fallback=False, ignored=0)

    monkeypatch.setattr("fuserec.client.Recommender", Fake)
    for user in (["--user", "3"], []):
        status, output = fuserec("recommend", *user, "--log", "logs/served.jsonl", "--json")
        assert status == 0 and json.loads(output)["model_version"] == "4"
    first, second = map(json.loads, (tmp_path / "logs" / "served.jsonl").read_text().splitlines())
    assert (first["user_id"], first["item_ids"], first["model_version"]) == (3, [7, 9], "4")
    assert second["user_id"] is None and second["timestamp"] > 1_700_000_000
