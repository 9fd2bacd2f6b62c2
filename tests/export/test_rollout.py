"""What is served after each of the commands, and that nothing that is in use is removed."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from fuserec import journal
from fuserec.errors import BundleError, ExportError, UsageError
from fuserec.export import rollout
from fuserec.manifest import Manifest, bundle_folder, bundles
from fuserec.traffic import AB, SHADOW, Experiment, Traffic, served_folder


@pytest.fixture
def served(repository: Path, tmp_path: Path) -> Path:
    """A repository with two versions."""
    copy = Path(shutil.copytree(repository, tmp_path / "served"))
    assert rollout.publish(repository, copy, force=True) == 2
    return copy


def now(served: Path) -> int:
    return int(served_folder(served).name)


def test_what_was_published_is_whole_and_served(served: Path) -> None:
    assert now(served) == 2
    Manifest.read(bundle_folder(served)).verify(served)


def test_back_and_forth(served: Path) -> None:
    assert rollout.roll_back(served) == 1
    assert now(served) == 1
    with pytest.raises(BundleError, match="has no version that was served before 1"):
        rollout.roll_back(served)
    assert rollout.serve(served, None) == 2
    assert Traffic.read(served) == Traffic()


def test_a_damaged_version_is_not_gone_back_to(served: Path, repository: Path) -> None:
    rollout.publish(repository, served, keep=3, force=True)
    (served / "recommend" / "2" / "items.parquet").write_bytes(b"")
    assert rollout.roll_back(served) == 1


def test_publishing_ends_a_pin(served: Path, repository: Path) -> None:
    rollout.roll_back(served)
    assert rollout.publish(repository, served, force=True) == 3
    assert now(served) == 3


@pytest.mark.parametrize("kind", [SHADOW, AB])
def test_an_experiment_leaves_what_is_served(served: Path, repository: Path, kind: str) -> None:
    assert rollout.publish(repository, served, kind=kind, share=0.2, force=True) == 3
    assert Traffic.read(served) == Traffic(2, Experiment(kind, 3, 0.2))
    assert rollout.stop_trying(served) == 2
    assert Traffic.read(served) == Traffic(2)
    assert rollout.try_out(served, kind, 3, 0.5) == 2


def test_what_is_named_is_kept(served: Path, repository: Path) -> None:
    rollout.serve(served, 1)
    for _ in range(3):
        rollout.publish(repository, served, kind=AB, share=0.1, keep=1, force=True)
    assert 1 in bundles(served), "the version that is served was removed"
    assert list(bundles(served)) == [1, 2, 5], "2 was served before 1"


def test_what_makes_no_sense(served: Path, repository: Path) -> None:
    with pytest.raises(UsageError, match="the served repository itself"):
        rollout.publish(served, served)
    with pytest.raises(UsageError, match="is the one that is served"):
        rollout.try_out(served, AB, 2, 0.1)
    with pytest.raises(UsageError, match="share came as 2"):
        rollout.try_out(served, AB, 1, 2.0)
    with pytest.raises(BundleError, match="has no version 9"):
        rollout.serve(served, 9)


def test_a_damaged_source_changes_nothing(served: Path, repository: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(repository, tmp_path / "source"))
    (source / "recommend" / "1" / "items.parquet").write_bytes(b"")
    with pytest.raises(BundleError, match="items.parquet"):
        rollout.publish(source, served)
    assert list(bundles(served)) == [1, 2]


def test_the_same_content_is_one_version(served: Path, repository: Path) -> None:
    """Also where it is not the newest, which is then pinned; a damaged one does not count."""
    assert rollout.publish(repository, served) == 2
    assert list(bundles(served)) == [1, 2]
    (served / "recommend" / "2" / "items.parquet").write_bytes(b"")
    assert rollout.publish(repository, served) == 1
    assert Traffic.read(served) == Traffic(1)


def test_what_a_server_refused_is_neither_counted_nor_taken_for_the_same(served: Path, repository: Path) -> None:
    journal.record(served, journal.SERVED, 1, journal.START)
    journal.record(served, journal.REFUSED, 2, "it does not load")
    rollout.serve(served, None)
    shutil.rmtree(served / "recommend" / "1")
    assert rollout.publish(repository, served) == 3, "the refused version was taken for good"


def test_what_is_served_and_what_was_before_are_never_removed(served: Path, repository: Path) -> None:
    for version in (1, 2):
        journal.record(served, journal.SERVED, version, journal.PUBLISH)
    for number in (3, 4, 5):
        assert rollout.publish(repository, served, keep=1, force=True) == number
        journal.record(served, journal.REFUSED, number, "it does not load")
    assert {1, 2} <= set(bundles(served))
    assert rollout.roll_back(served) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOLCK])
def test_a_disk_at_fault_is_one_line_and_changes_nothing(
    served: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    before = sorted(path for path in served.rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(ExportError, match=f"{os.strerror(code)}; no version was published"):
        rollout.publish(repository, served, force=True)
    monkeypatch.undo()
    monkeypatch.setattr(Traffic, "write", fail)
    with pytest.raises(ExportError, match=f"{os.strerror(code)}; nothing was changed"):
        rollout.roll_back(served)
    monkeypatch.undo()
    assert now(served) == 2
    assert sorted(path for path in served.rglob("*") if path.is_file()) == before


def test_a_broken_traffic_file_costs_no_version(served: Path, repository: Path) -> None:
    (served / "traffic.json").write_text("{")
    assert rollout.publish(repository, served, keep=1, force=True, accept_new_ids=True) == 3
    assert list(bundles(served)) == [1, 2, 3]
    assert now(served) == 3
