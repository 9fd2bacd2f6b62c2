"""`fuserec serve --check` does what a start would do, and starts nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bench._candidates import put_version
from fuserec import journal
from fuserec.traffic import AB, Experiment, Traffic


def test_check(fuserec: Callable[..., tuple[int, str]], repository: Path) -> None:
    status, printed = fuserec("serve", repository, "--check", "--json")
    found = json.loads(printed)
    assert status == 0
    assert found["version 1 (served)"] == "two-tower, 300 items"
    assert found["user_tower"] == "cpu in int8" and found["answer"].startswith("one came")


def test_what_is_wrong_is_said(fuserec: Callable[..., tuple[int, str]], repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    Traffic(1, Experiment(AB, 7, 0.1)).write(copy)
    status, printed = fuserec("serve", copy, "--check")
    assert status == 1 and "7" in printed and "Traceback" not in printed
    (copy / "recommend" / "1" / "items.parquet").write_bytes(b"")
    status, printed = fuserec("serve", copy, "--check")
    assert status == 1 and "items.parquet has 0 bytes" in printed
    assert "there is no other that a start could serve" in printed


def test_what_a_start_would_serve_is_said(
    fuserec: Callable[..., tuple[int, str]], repository: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    put_version(copy)
    journal.record(copy, journal.SERVED, 1, journal.START)
    status, printed = fuserec("serve", copy, "--check", "--json")
    assert status == 0 and "serves version 1, which has answered before" in json.loads(printed)["a start"]
    (copy / "recommend" / "2" / "items.parquet").write_bytes(b"")
    status, printed = fuserec("serve", copy, "--check")
    assert status == 1 and "a start serves version 1 in its place" in printed
