"""What a rollback goes back along: what was served, and never what was only tried."""

import os
from pathlib import Path

import pytest

from fuserec import journal
from fuserec.journal import ASKED, FALLBACK, PUBLISH, REFUSED, ROLLBACK, SERVE, SERVED, START, Event


def line(*steps: tuple[str, int, str]) -> list[int]:
    return journal.served_line([Event("", kind, version, "", why) for kind, version, why in steps])


def test_it_is_what_was_served() -> None:
    assert line((SERVED, 1, START), (ASKED, 2, PUBLISH), (SERVED, 2, PUBLISH), (ASKED, 3, PUBLISH)) == [1, 2]


def test_a_refused_or_tried_version_is_not_in_it() -> None:
    assert line((SERVED, 1, START), (ASKED, 2, "shadow"), (ASKED, 3, PUBLISH), (REFUSED, 3, "x")) == [1]


def test_a_rollback_goes_back_along_it() -> None:
    served = [(SERVED, 1, START), (SERVED, 2, PUBLISH), (SERVED, 3, PUBLISH)]
    assert line(*served, (ASKED, 2, ROLLBACK), (SERVED, 2, ROLLBACK)) == [1, 2]
    assert line(*served, (SERVED, 2, ROLLBACK), (SERVED, 4, PUBLISH)) == [1, 2, 4]
    assert line(*served, (SERVED, 2, FALLBACK)) == [1, 2], "a server that falls back leaves what it could not serve"
    assert line(*served, (SERVED, 1, SERVE)) == [1, 2, 3, 1], "to serve an old version is no way back"


def test_several_servers_tell_the_same() -> None:
    both = [(SERVED, 1, START), (SERVED, 1, START), (SERVED, 2, PUBLISH), (SERVED, 2, PUBLISH)]
    assert line(*both) == [1, 2]
    # One is late: it turns to the new version after the other has already gone back.
    late = [(ASKED, 1, ROLLBACK), (SERVED, 1, ROLLBACK), (SERVED, 2, PUBLISH), (SERVED, 1, ROLLBACK)]
    assert line(*both, *late) == [1]


def test_where_no_server_tells_it_is_what_was_asked_for() -> None:
    assert line((ASKED, 1, SERVE), (ASKED, 2, PUBLISH), (ASKED, 3, "ab")) == [1, 2]
    assert line((ASKED, 1, SERVE), (ASKED, 2, PUBLISH), (ASKED, 1, ROLLBACK)) == [1]


def test_what_is_good_and_what_is_bad(tmp_path: Path) -> None:
    for kind, version in ((SERVED, 1), (SERVED, 2), (REFUSED, 3), (REFUSED, 2), (SERVED, 4), (REFUSED, 5), (SERVED, 5)):
        journal.record(tmp_path, kind, version, PUBLISH)
    found = journal.events(tmp_path)
    assert journal.known_good(found) == {1, 4, 5}
    assert journal.known_bad(found) == {3}, "one that was served before is not to blame for a damage since"
    assert journal.protected(tmp_path) == {5, 4}


def test_who_and_when_are_written_down(tmp_path: Path) -> None:
    journal.record(tmp_path, ASKED, 7, PUBLISH)
    [event] = journal.events(tmp_path)
    assert event.version == 7 and "@" in event.by and event.time.endswith("+00:00")


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b'{"time": "x", "kind": "serv', id="a line that a full disk cut off"),
        pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
        pytest.param(b"[" * 100_000, id="nested deeply"),
        pytest.param(b'{"time": 1, "kind": 2, "version": "3", "by": [], "why": {}}', id="other types"),
        pytest.param(b"x" * 3_000_000, id="long"),
    ],
)
def test_what_is_no_event_is_passed_over(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / journal.FILE_NAME).write_bytes(garbage + b"\n")
    journal.record(tmp_path, SERVED, 1, START)
    assert [event.version for event in journal.events(tmp_path)] == [1]


@pytest.mark.parametrize("kind", ["folder", "link in a circle", "pipe"])
def test_a_journal_that_is_no_file_holds_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / journal.FILE_NAME
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    assert journal.events(tmp_path) == []
    with pytest.raises(OSError, match=journal.FILE_NAME):
        journal.record(tmp_path, SERVED, 1, START)
