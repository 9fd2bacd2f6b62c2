"""Which version a server starts with, and which files of it are read again."""

import os
import shutil
from pathlib import Path

import pytest

from fuserec import journal
from fuserec.errors import BundleError
from fuserec.export import rollout
from fuserec.journal import REFUSED, SERVED, START
from fuserec.manifest import Manifest, bundles
from fuserec.serve.versions import Versions
from fuserec.traffic import AB, Experiment, Traffic


@pytest.fixture
def three(repository: Path, tmp_path: Path) -> Path:
    """A repository with three versions, of which none was served yet."""
    copy = Path(shutil.copytree(repository, tmp_path / "three"))
    for version in (2, 3):
        for model in Manifest.read(copy / "recommend" / "1").models:
            shutil.copytree(repository / model / "1", copy / model / str(version))
    return copy


def test_the_wanted_one_is_first(three: Path) -> None:
    assert Versions(three).first(cautiously=True) == 3
    Traffic(2).write(three)
    assert Versions(three).first(cautiously=True) == 2


def test_one_that_never_answered_waits_where_another_has(three: Path) -> None:
    journal.record(three, SERVED, 1, START)
    versions = Versions(three)
    assert versions.first(cautiously=True) == 1
    assert versions.first(cautiously=False) == 3
    assert list(versions.in_order(3)) == [3, 1], "2 was never served"


def test_without_a_history_older_ones_follow_but_those_tried_or_refused(three: Path) -> None:
    assert list(Versions(three).in_order(3)) == [3, 2, 1]
    journal.record(three, REFUSED, 2, "broken")
    assert list(Versions(three).in_order(3)) == [3, 1]
    Traffic(3, Experiment(AB, 1, 0.5)).write(three)
    assert list(Versions(three).in_order(3)) == [3]


@pytest.mark.parametrize("content", [b"", b"{", b'{"serve": 9, "experiment": null}', b"\xff", b"x" * 100_000])
def test_the_last_good_one_where_traffic_cannot_be_read(three: Path, content: bytes) -> None:
    (three / "traffic.json").write_bytes(content)
    with pytest.raises(BundleError):
        Versions(three).first(cautiously=True)
    journal.record(three, SERVED, 2, START)
    assert Versions(three).first(cautiously=True) == 2


def test_a_version_is_hashed_once(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("fuserec.manifest.sha256", lambda path, between=None: read.append(path) or _sha256(path))
    versions = Versions(three)
    assert versions.verified(1).version == 1 and read
    read.clear()
    assert versions.verified(1).version == 1
    assert {path.name for path in read} <= {"config.pbtxt"}, f"read again: {read}"
    changed = three / "recommend" / "1" / "items.parquet"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="was changed after it was published"):
        versions.verified(1)


def test_a_new_version_lets_the_old_one_be_read_no_second_time(
    three: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces the configurations, which all versions share."""
    versions = Versions(three)
    versions.verified(1)
    rollout.publish(repository, three, keep=9, force=True)
    read = []
    monkeypatch.setattr("fuserec.manifest.sha256", lambda path, between=None: read.append(path) or _sha256(path))
    versions.verified(1)
    assert {path.name for path in read} <= {"config.pbtxt"}, f"read again: {read}"
    (three / "recommend" / "config.pbtxt").write_text("# of somebody\n")
    with pytest.raises(BundleError, match="was changed after it was published"):
        versions.verified(1)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_can_be_ended(three: Path) -> None:
    class Enough(Exception):
        pass

    def enough() -> None:
        raise Enough

    with pytest.raises(Enough):
        Versions(three).verified(1, enough)


def test_the_fingerprint_follows_every_file(three: Path) -> None:
    versions = Versions(three)
    seen = {versions.fingerprint(2)}
    for path in Manifest.read(three / "recommend" / "2").paths(three):
        if path.parent.name == "2" and path.name != "manifest.json":
            path.rename(path.with_name("away"))
            seen.add(versions.fingerprint(2))
            path.with_name("away").rename(path)
            seen.add(versions.fingerprint(2))
    assert len(seen) > len(Manifest.read(three / "recommend" / "2").files)


def _unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param("manifest.json", _folder, id="manifest a folder"),
        pytest.param("manifest.json", _unreadable, id="manifest a link to itself"),
        pytest.param("manifest.json", lambda path: path.write_bytes(b"\xff\xfe"), id="manifest not UTF-8"),
        pytest.param("manifest.json", lambda path: path.write_bytes(b"[" * 10**6), id="manifest nested deeply"),
        pytest.param("manifest.json", lambda path: os.truncate(path, 10**8), id="manifest huge"),
        pytest.param(
            "manifest.json",
            lambda path: path.write_text(
                path.read_text().replace('"recommend/items.parquet"', f'"recommend/{"x" * 5_000}": {{"bytes": 1, '
                f'"sha256": "{"0" * 64}"}}, "recommend/items.parquet"')
            ),
            id="a name of 5,000 characters",
        ),
        pytest.param("items.parquet", _unreadable, id="file a link to itself"),
        pytest.param("items.parquet", _folder, id="file a folder"),
    ],
)  # fmt: skip
def test_whatever_a_version_holds_is_one_kind_of_error(three: Path, name: str, damage: object) -> None:
    path = three / "recommend" / "2" / name
    assert callable(damage)
    damage(path)
    versions = Versions(three)
    with pytest.raises(BundleError):
        versions.verified(2)
    versions.fingerprint(2)
    assert versions.verified(1).version == 1 and 1 in bundles(three)


def test_rollback_keeps_to_what_was_served(three: Path) -> None:
    for version in (1, 3):
        journal.record(three, SERVED, version, START)
    assert rollout.roll_back(three) == 1, "2 was never served"
    with pytest.raises(BundleError, match="no version that was served before 1"):
        rollout.roll_back(three)


def test_rollback_from_a_refused_version_goes_to_what_still_answers(three: Path) -> None:
    for version in (1, 2):
        journal.record(three, SERVED, version, START)
    journal.record(three, REFUSED, 3, "broken")
    assert rollout.roll_back(three) == 2
