"""A reader sees the old version or the whole new one, whatever happens to who publishes."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuserec.errors import BundleError, ExportError
from fuserec.export.publishing import publishing
from fuserec.manifest import Manifest, bundle_folder, bundles, served_bundle
from tests.export import publish_one
from tests.export.publish_one import publish

Start = Callable[..., "subprocess.Popen[str]"]


class Interrupted(Exception):
    pass


def newest(repository: Path) -> tuple[int, str]:
    """Return number and content of the newest version, after comparing it with its manifest."""
    bundle = bundle_folder(repository)
    manifest = Manifest.read(bundle)
    manifest.verify(repository)
    return manifest.version, (bundle / "items.parquet").read_text()


def hidden(repository: Path) -> list[str]:
    """Return what lies in a repository that is neither a model nor a version."""
    return sorted(str(path.relative_to(repository)) for path in repository.rglob(".*"))


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process which publishes, and returns once it is held."""
    started = []

    def run(repository: Path, content: str, point: str) -> "subprocess.Popen[str]":
        command = [sys.executable, publish_one.__file__, str(repository), content, point]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_versions_count_up_and_the_last_good_one_stays(tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repository"
    assert [publish(repository, content) for content in ("a", "b", "c")] == [1, 2, 3]
    assert newest(repository) == (3, "c")
    assert list(bundles(repository)) == [2, 3]
    assert not list(repository.glob("*/1"))
    assert hidden(repository) == [".fuserec.lock"]


@pytest.mark.parametrize(("keep", "expected"), [(1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_keep(tmp_path: Path, keep: int, expected: list[int]) -> None:
    for content in "abc":
        publish(tmp_path, content, keep=9)
    publish(tmp_path, "d", keep=keep)
    assert list(bundles(tmp_path)) == expected


def test_keep_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep came as 0"), publishing(tmp_path, ["recommend"], keep=0):
        pytest.fail("nothing is to be written")


def test_a_damaged_version_does_not_count_as_good(tmp_path: Path) -> None:
    for content in "ab":
        publish(tmp_path, content)
    (tmp_path / "recommend/2/items.parquet").write_text("!")
    publish(tmp_path, "c")
    assert list(bundles(tmp_path)) == [1, 2, 3], "1 is the last good one before 3"
    publish(tmp_path, "d")
    assert list(bundles(tmp_path)) == [3, 4]


def test_error_leaves_the_old_version(tmp_path: Path) -> None:
    publish(tmp_path, "a")

    def fail() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        publish(tmp_path, "b", on_written=fail)
    assert newest(tmp_path) == (1, "a")
    assert hidden(tmp_path) == [".fuserec.lock"]


@pytest.mark.parametrize("exists", [pytest.param(False, id="new"), pytest.param(True, id="empty folder")])
def test_error_in_a_first_export_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    repository = tmp_path / "repository"
    if exists:
        repository.mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json was not written"), publishing(repository, ["recommend"]):
        pass
    assert list(tmp_path.iterdir()) == [repository] * exists
    assert not list(tmp_path.glob("*/*"))


def test_what_was_not_written_by_an_export_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "recommend").mkdir()
    (tmp_path / "recommend" / "thesis.txt").write_text("important")
    with pytest.raises(ExportError, match="was not written by `fuserec export`"), publishing(tmp_path, ["recommend"]):
        pytest.fail("nothing is to be written")
    assert [path.name for path in tmp_path.rglob("*")] == ["recommend", "thesis.txt"]


def test_two_at_once_become_two_versions(tmp_path: Path, start: Start) -> None:
    processes = [start(tmp_path, content, "writing") for content in "ab"]
    numbers = [int(process.communicate("\n")[0]) for process in processes]
    assert sorted(numbers) == [1, 2]
    for content, number in zip("ab", numbers, strict=True):
        bundle = bundle_folder(tmp_path, number)
        Manifest.read(bundle).verify(tmp_path)
        assert (bundle / "items.parquet").read_text() == content
    assert hidden(tmp_path) == [".fuserec.lock"]


def test_one_waits_while_the_other_puts_its_version_in_place(tmp_path: Path, start: Start) -> None:
    first = start(tmp_path, "a", "stage")
    command = [sys.executable, publish_one.__file__, str(tmp_path), "b", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1.0)
        assert first.communicate("\n")[0] == "1\n"
        assert second.communicate()[0] == "2\n"
    assert newest(tmp_path) == (2, "b")


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        pytest.param("writing", (1, "a"), id="while it writes"),
        pytest.param("stage", (1, "a"), id="between two of its models"),
        pytest.param("door", (2, "b"), id="when the front door is in place"),
    ],
)
def test_killed_publisher(tmp_path: Path, start: Start, point: str, expected: tuple[int, str]) -> None:
    publish(tmp_path, "a")
    process = start(tmp_path, "b", point)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert newest(tmp_path) == expected
    for model in publish_one.MODELS:
        version = max(int(path.name) for path in (tmp_path / model).glob("[0-9]*"))
        assert served_bundle(tmp_path, version) == bundle_folder(tmp_path), f"{model} answers from another bundle"
    assert publish(tmp_path, "c") == expected[0] + 1
    assert newest(tmp_path) == (expected[0] + 1, "c")
    assert hidden(tmp_path) == [".fuserec.lock"]


def test_killed_before_the_configuration_was_put_in_place(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "a")
    old = (tmp_path / "recommend/config.pbtxt").read_text()
    process = start(tmp_path, "b", "door")
    process.kill()
    process.wait()
    assert (tmp_path / "recommend/config.pbtxt").read_text() == old
    assert newest(tmp_path) == (2, "b")
    with pytest.raises(ValueError, match="not written"), publishing(tmp_path, ["recommend"]):
        pass
    assert (tmp_path / "recommend/config.pbtxt").read_text() == "# another\n", "the next export finishes it"
    assert newest(tmp_path) == (2, "b")


def test_first_export_killed(tmp_path: Path, start: Start) -> None:
    repository = tmp_path / "repository"
    process = start(repository, "a", "stage")
    process.kill()
    process.wait()
    with pytest.raises(BundleError, match="holds no bundle"):
        bundle_folder(repository)
    assert publish(repository, "b") == 1
    assert newest(repository) == (1, "b")


def test_an_older_version_stays_valid_under_a_new_configuration(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    publish(tmp_path, "b", config="# of a newer fuserec\n")
    assert (tmp_path / "recommend/config.pbtxt").read_text() == "# of a newer fuserec\n"
    for version in (1, 2):
        Manifest.read(bundle_folder(tmp_path, version)).verify(tmp_path)
    (tmp_path / "recommend/config.pbtxt").write_text("# of somebody\n")
    with pytest.raises(BundleError, match=r"recommend/config\.pbtxt was changed after it was published"):
        newest(tmp_path)


def test_the_front_door_may_change(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    assert publish(tmp_path, "b", models=("rank",)) == 2
    assert newest(tmp_path) == (2, "b")
    assert bundle_folder(tmp_path).parent.name == "rank"
    publish(tmp_path, "c", models=("rank",))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fuserec.lock", "rank"], "models without a version"


def test_a_copy_of_a_repository_is_one(tmp_path: Path) -> None:
    publish(tmp_path / "a", "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns(".*"))
    assert publish(tmp_path / "b", "b") == 2
