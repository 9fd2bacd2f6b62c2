"""What the chaos bench counts: a wrong answer, a late one and an error without a type cannot pass for anything else."""

import shutil
from pathlib import Path

from bench.chaos import GRACE_S, Call, add_other_version, answers_of, row_of
from fuserec.manifest import Manifest
from fuserec.traffic import Traffic


def test_calls_are_sorted_by_what_came() -> None:
    calls = [Call(0.0, 0.1, "right")] * 90
    calls += [Call(1.0, 1.2, "wrong"), Call(1.0, 3.0, "DeadlineExceeded"), Call(2.0, 2.1, "ServerUnavailable")]
    row = row_of("kill-server", calls, began=1.0, timeout_ms=2_000.0)
    assert (row["calls"], row["right"], row["wrong"], row["failed"], row["lost"]) == (93, 90, 1, 2, 0)
    assert row["recovered_s"] == 2.0 and row["errors"] == "DeadlineExceeded:1 ServerUnavailable:1"


def test_late_and_untyped_calls_are_lost() -> None:
    calls = [Call(0.0, 2.0 + GRACE_S + 0.1, "right"), Call(0.0, 0.1, "untyped ValueError"), Call(0.0, 0.1, "right")]
    row = row_of("kill-server", calls, began=0.0, timeout_ms=2_000.0)
    assert (row["lost"], row["failed"]) == (2, 0)


def test_the_other_version_answers_otherwise(repository: Path, tmp_path: Path) -> None:
    """Else a swap that mixes up versions would look right."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    add_other_version(copy)
    assert Traffic.read(copy).serve == 1
    Manifest.read(copy / "recommend" / "2").verify(copy)
    first, second = (answers_of(copy / "recommend" / version, [5, 8, 11]) for version in ("1", "2"))
    assert all(first[user] != second[user] for user in first)
