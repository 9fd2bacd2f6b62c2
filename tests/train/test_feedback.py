"""What users did is matched with what they were shown, counted, and written as interactions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fuserec.errors import DataError, UsageError
from fuserec.train.data import read_folder
from fuserec.train.feedback import Feedback, Rate, parse_window, write_feedback
from fuserec.train.served import log_answer, read_served

DAY = 86_400
SHOWN = [
    (1, 1000, [10, 20, 30], "1"),
    (1, 2000, [20, 40], "2"),
    (2, 1000, [10, 20, -1], "1"),
    (None, 1000, [10], "2"),
]
ACTIONS = """user_id,item_id,timestamp,event
1,10,1500,click
1,10,1600,buy
1,20,2500,click
1,30,999,click
2,20,3000,click
2,50,1200,click
"""


def write_log(folder: Path) -> Path:
    path = folder / "log" / "served.jsonl"
    for user_id, timestamp, item_ids, version in SHOWN:
        log_answer(path, user_id=user_id, timestamp=timestamp, item_ids=item_ids, model_version=version)
    return path


def write_data(folder: Path, name: str = "old") -> Path:
    (folder / name).mkdir()
    rows = {"user_id": [1, 1, 1, 1], "item_id": [30, 10, 20, 40], "timestamp": [999, 5, 6, 7]}
    pl.DataFrame(rows).write_parquet(folder / name / "interactions.parquet")
    titles = {"item_id": [10, 20, 30, 40], "title": list("abcd"), "year": [1990, None, 1992, 1993]}
    pl.DataFrame(titles).cast({"year": pl.Int32}).write_parquet(folder / name / "items.parquet")
    pl.DataFrame({"user_id": [1], "tier": ["gold"]}).write_parquet(folder / name / "users.parquet")
    return folder / name


def run(folder: Path, actions: str = ACTIONS, *, name: str = "actions.csv", **options: Any) -> Feedback:
    (folder / name).write_text(actions)
    return write_feedback(write_log(folder), folder / name, folder / "new", **options)


def test_what_is_counted(tmp_path: Path) -> None:
    report = run(tmp_path, within_s=1500)
    assert (report.answers, report.answers_without_user, report.shown) == (4, 1, 7)
    # 10 twice and 20 were shown before; 30 was acted on before it was shown, 20 too late, 50 was not shown.
    assert (report.actions, report.actions_on_shown, report.share_on_shown) == (6, 3, 0.5)
    assert report.positions == [Rate("1", 3, 3, 2), Rate("2", 3, 3, 0), Rate("3", 1, 1, 0)]
    # 20 was shown to user 1 by both: the later answer earns the action.
    assert report.versions == [Rate("1", 2, 5, 1), Rate("2", 1, 2, 1)]
    assert report.versions[0].rate == 0.2


def test_a_wider_window_counts_more(tmp_path: Path) -> None:
    assert run(tmp_path, within_s=2000).actions_on_shown == 4


def test_what_is_written(tmp_path: Path) -> None:
    report = run(tmp_path, data=write_data(tmp_path))
    interactions = pl.read_parquet(tmp_path / "new" / "interactions.parquet")
    # (1, 30, 999) is in the old data; the rest is new, by time.
    assert interactions.rows() == [(2, 50, 1200), (1, 10, 1500), (1, 10, 1600), (1, 20, 2500), (2, 20, 3000)]
    assert (report.interactions, report.already_known, report.items_added) == (5, 1, 1)
    dataset = read_folder(tmp_path / "new")
    assert dataset.items["title"].to_list() == ["a", "b", "c", "d", "50"]
    assert dataset.users is not None and dataset.users.rows() == [(1, "gold")]
    note = json.loads((tmp_path / "new" / "source.json").read_text())
    assert note["versions"][1] == {"of": "2", "answers": 1, "shown": 2, "acted": 1, "rate": 0.5}


def test_merged_with_the_old_data(tmp_path: Path) -> None:
    report = run(tmp_path, data=write_data(tmp_path), merge=True)
    assert report.interactions == 9
    assert read_folder(tmp_path / "new").interactions.height == 9


def test_a_checkpoint_gives_the_titles(tmp_path: Path) -> None:
    old = write_data(tmp_path)
    (old / "interactions.parquet").unlink()
    report = run(tmp_path, data=old)
    assert (report.interactions, report.already_known) == (6, 0)
    assert not (tmp_path / "new" / "users.parquet").exists()


def test_only_some_actions(tmp_path: Path) -> None:
    report = run(tmp_path, only=["buy"])
    assert (report.actions, report.interactions) == (1, 1)
    with pytest.raises(DataError, match="no action is like; expected at least one"):
        run(tmp_path, only=["like"])


@pytest.mark.parametrize(
    ("ratings", "written"), [([4, 5, 3, 3, 2, 1], True), ([4, 5, None, 3, 2, 1], False)], ids=["all", "some"]
)
def test_ratings_are_written_if_every_action_has_one(tmp_path: Path, ratings: list[int | None], written: bool) -> None:
    lines = ACTIONS.strip().replace("event", "event,rating").splitlines()
    rated = [lines[0], *(f"{line},{'' if r is None else r}" for line, r in zip(lines[1:], ratings, strict=True))]
    report = run(tmp_path, "\n".join(rated))
    assert report.has_ratings is written
    assert ("rating" in read_folder(tmp_path / "new").interactions.columns) is written


def test_actions_as_json_lines_and_as_parquet_are_the_same(tmp_path: Path) -> None:
    table = pl.read_csv(ACTIONS.encode())
    expected = run(tmp_path)
    table.write_ndjson(tmp_path / "a.jsonl")
    table.write_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        log = tmp_path / "log" / "served.jsonl"
        assert write_feedback(log, tmp_path / name, tmp_path / "new") == expected, name


def test_original_ids_are_translated(tmp_path: Path) -> None:
    old = write_data(tmp_path)
    pl.DataFrame({"user_id": [1], "original": ["al"]}).write_parquet(old / "ids_users.parquet")
    ids = {"item_id": [10, 20, 30, 40], "original": ["A", "B", "C", "D"]}
    pl.DataFrame(ids).write_parquet(old / "ids_items.parquet")
    report = run(tmp_path, "user,sku,time\nal,A,1500\nbo,E,1600\nal,B,1700\n", data=old, original_ids=True)
    assert report.actions_on_shown == 2
    assert pl.read_parquet(tmp_path / "new" / "interactions.parquet").rows() == [
        (1, 10, 1500),
        (2, 41, 1600),
        (1, 20, 1700),
    ]
    assert pl.read_parquet(tmp_path / "new" / "ids_users.parquet").rows() == [(1, "al"), (2, "bo")]
    assert pl.read_parquet(tmp_path / "new" / "items.parquet")["title"].to_list() == ["a", "b", "c", "d", "E"]


@pytest.mark.parametrize("milliseconds", [1_704_708_000_000, 1_704_708_000_000.5])
def test_a_log_in_milliseconds_is_refused(milliseconds: float, tmp_path: Path) -> None:
    log = tmp_path / "served.jsonl"
    log_answer(log, user_id=1, timestamp=milliseconds, item_ids=[10], model_version="1")
    with pytest.raises(DataError, match=r"expected seconds since 1970, which these are after 2100: milliseconds\?"):
        read_served(log)


def test_malformed_lines_are_counted_and_named(tmp_path: Path) -> None:
    log = write_log(tmp_path)
    bad = [
        '{"user_id": "al", "timestamp": 1, "item_ids": []}',
        "{",
        "[]",
        '{"user_id": 1, "timestamp": 1, "item_ids": 5}',
    ]
    log.write_text("\n".join([bad[0], log.read_text().strip(), *bad[1:]]))
    (tmp_path / "a.jsonl").write_text(
        '{"user": 1, "item": 10, "time": 1500}\n\nhm\n{"user": null, "item": 1, "time": 2}\n{"user": 1, "item": 20}\n'
    )
    report = write_feedback(log, tmp_path / "a.jsonl", tmp_path / "new")
    assert report.malformed_answers.lines == (1, 6, 7, 8)
    assert report.malformed_answers.reason == "user_id is 'al', expected a number from 0 or null"
    assert report.malformed_actions.lines == (3, 4, 5)
    assert report.malformed_actions.reason == "it is not a JSON object"
    assert (report.answers, report.actions) == (4, 1)


def test_lines_of_a_csv_are_counted_with_its_header(tmp_path: Path) -> None:
    report = run(tmp_path, ACTIONS + "1,,5,click\n")
    assert report.malformed_actions.lines == (8,)
    assert report.malformed_actions.reason == "user '1', item None, time read as 5"


@pytest.mark.parametrize(
    ("log", "actions", "message"),
    [
        pytest.param("x\ny\n", ACTIONS, r"none of its 2 lines is an answer: it is not JSON \(Expecting", id="log"),
        pytest.param("", ACTIONS, r"served\.jsonl: empty file; expected lines like", id="empty log"),
        pytest.param(None, "user,item,time\n", "no rows", id="no actions"),
        pytest.param(None, "user,item,time\nal,B,1\n", "user 'al', .*--original-ids translates", id="ids as strings"),
        pytest.param(None, "user,item\n1,2\n", "no column is named like the time", id="no time"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, log: str | None, actions: str, message: str) -> None:
    path = write_log(tmp_path)
    if log is not None:
        path.write_text(log)
    (tmp_path / "actions.csv").write_text(actions)
    with pytest.raises(DataError, match=message):
        write_feedback(path, tmp_path / "actions.csv", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_new_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds all of its 1 actions already"):
        run(tmp_path, "user,item,time\n1,30,999\n", data=write_data(tmp_path))


def test_options_that_need_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--merge needs --data"):
        run(tmp_path, merge=True)


@pytest.mark.parametrize(("text", "seconds"), [("7d", 7 * DAY), ("12h", 43_200), ("30m", 1800), ("90s", 90)])
def test_windows(text: str, seconds: int) -> None:
    assert parse_window(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "0d", "1.5h", "7 d"])
def test_windows_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number and s, m, h or d"):
        parse_window(text)
