"""Files and folders appear whole or not at all."""

import errno
import shutil
import threading
from pathlib import Path

import pytest

from fuserec.files import is_locked, locked, replacing_file, replacing_folder, sha256


class Interrupted(Exception):
    pass


def test_sha256_of_known_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_file_is_replaced_on_success(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for content in ("old", "new"):
        with replacing_file(path) as temporary:
            temporary.write_text(content)
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_file_is_kept_on_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Interrupted), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise Interrupted
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_folder_is_replaced_on_success(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing_folder(path) as temporary:
            (temporary / name).write_text(name)
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_folder_is_kept_on_error(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(Interrupted), replacing_folder(path) as temporary:
        (temporary / "half").write_text("half")
        raise Interrupted
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be renamed, as overlayfs keeps one of an image's layers; copies of it can be."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "old").write_text("old")
    rename, layer = Path.rename, folder.stat().st_ino

    def refuse(self: Path, target: Path) -> Path:
        if self.stat().st_ino == layer:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    return folder


def test_a_folder_of_an_image_is_replaced(image: Path) -> None:
    with replacing_folder(image) as temporary:
        (temporary / "new").write_text("new")
    assert [entry.name for entry in image.iterdir()] == ["new"]
    assert [entry.name for entry in image.parent.iterdir()] == ["folder"], "a copy was left behind"


def test_a_folder_of_an_image_is_whole_where_it_cannot_be_removed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = shutil.rmtree

    def break_off(path: Path, ignore_errors: bool = False) -> None:
        rmtree(path, ignore_errors=ignore_errors)
        if path == image:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(shutil, "rmtree", break_off)
    with pytest.raises(PermissionError), replacing_folder(image) as temporary:
        (temporary / "new").write_text("new")
    assert [entry.relative_to(image).as_posix() for entry in image.rglob("*")] == ["inner", "inner/old"]
    assert [entry.name for entry in image.parent.iterdir()] == ["folder"]


def test_lock_is_held_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    assert not is_locked(path)
    with pytest.raises(Interrupted), locked(path):
        assert is_locked(path)
        raise Interrupted
    assert path.is_file() and not is_locked(path)


def test_who_waited_for_a_lock_that_was_removed_holds_the_new_one(tmp_path: Path) -> None:
    """Else somebody who makes the file again would hold it, too."""
    path = tmp_path / "folder" / "lock"
    held, let_go = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with locked(path):
            held.set()
            let_go.wait(60)

    waiting = threading.Thread(target=wait_for_it)
    with locked(path):
        waiting.start()
        assert not held.wait(0.2)
        path.unlink()
        path.parent.rmdir()
    try:
        assert held.wait(60)
        assert is_locked(path)
    finally:
        let_go.set()
        waiting.join()
