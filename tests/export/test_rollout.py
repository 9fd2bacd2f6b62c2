"""What is served after each of the commands, and that nothing that is in use is removed."""

import shutil
from pathlib import Path

import pytest

from fuserec.errors import BundleError, UsageError
from fuserec.export import rollout
from fuserec.manifest import Manifest, bundle_folder, bundles
from fuserec.traffic import AB, SHADOW, Experiment, Traffic, served_folder


@pytest.fixture
def served(repository: Path, tmp_path: Path) -> Path:
    """A repository with two versions."""
    copy = Path(shutil.copytree(repository, tmp_path / "served"))
    assert rollout.publish(repository, copy) == 2
    return copy


def now(served: Path) -> int:
    return int(served_folder(served).name)


def test_what_was_published_is_whole_and_served(served: Path) -> None:
    assert now(served) == 2
    Manifest.read(bundle_folder(served)).verify(served)


def test_back_and_forth(served: Path) -> None:
    assert rollout.roll_back(served) == 1
    assert now(served) == 1
    with pytest.raises(BundleError, match="no good version older than 1"):
        rollout.roll_back(served)
    assert rollout.serve(served, None) == 2
    assert Traffic.read(served) == Traffic()


def test_a_damaged_version_is_not_gone_back_to(served: Path, repository: Path) -> None:
    rollout.publish(repository, served, keep=3)
    (served / "recommend" / "2" / "items.parquet").write_bytes(b"")
    assert rollout.roll_back(served) == 1


def test_publishing_ends_a_pin(served: Path, repository: Path) -> None:
    rollout.roll_back(served)
    assert rollout.publish(repository, served) == 3
    assert now(served) == 3


@pytest.mark.parametrize("kind", [SHADOW, AB])
def test_an_experiment_leaves_what_is_served(served: Path, repository: Path, kind: str) -> None:
    assert rollout.publish(repository, served, kind=kind, share=0.2) == 3
    assert Traffic.read(served) == Traffic(2, Experiment(kind, 3, 0.2))
    assert rollout.stop_trying(served) == 2
    assert Traffic.read(served) == Traffic(2)
    assert rollout.try_out(served, kind, 3, 0.5) == 2


def test_what_is_named_is_kept(served: Path, repository: Path) -> None:
    rollout.serve(served, 1)
    for _ in range(3):
        rollout.publish(repository, served, kind=AB, share=0.1, keep=1)
    assert 1 in bundles(served), "the version that is served was removed"
    assert list(bundles(served)) == [1, 5]


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
