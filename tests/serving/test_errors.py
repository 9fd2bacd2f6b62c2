"""Servers without our models, and servers that go away, as a client sees them."""

import os
import py_compile
import shutil
import signal
from pathlib import Path

import pytest

from fuserec.client import DeadlineExceeded, Recommender, ServerUnavailable
from fuserec.errors import LaunchError
from fuserec.serve.launcher import Address, Server

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_deadline_is_kept_while_the_server_is_stopped(server: Server, scheme: str) -> None:
    address = f"{scheme}://127.0.0.1:{server.address.ports[scheme]}"
    with Recommender(address) as recommender:
        before = recommender.recommend(user_id=5, k=3, timeout_ms=10_000)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded, match="did not answer within 200 ms"):
                recommender.recommend(user_id=8, k=3, timeout_ms=200)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        # The late answer for user 8 must not be taken for the next call's.
        after = recommender.recommend(user_id=5, k=3, timeout_ms=10_000)
    assert after.item_ids.tolist() == before.item_ids.tolist()


def test_model_that_was_taken_away(repository: Path, tmp_path: Path) -> None:
    """As a server does that ends: the call may succeed elsewhere."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    with Server(copy, address=Address.free()) as server:
        with server.admin() as admin:
            admin.unload("recommend")
        for scheme in ("grpc", "http"):
            address = f"{scheme}://127.0.0.1:{server.address.ports[scheme]}"
            taken = pytest.raises(ServerUnavailable, match="no available versions|unloading")
            with Recommender(address, timeout_ms=5_000) as recommender, taken:
                recommender.recommend(user_id=5)
        address = f"grpc://127.0.0.1:{server.address.grpc_port}"
    with Recommender(address) as recommender, pytest.raises(ServerUnavailable, match="fuserec serve"):
        recommender.recommend(user_id=5)


def test_damaged_bundle_is_refused_before_the_server_starts(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    engine = copy / "recommend" / "1" / "engines" / "user_tower.cpu.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    with pytest.raises(Exception, match="cpu.onnx was changed after it was published"):
        Server(copy, address=Address.free()).start()


def test_planted_bytecode_is_not_run(repository: Path, tmp_path: Path) -> None:
    """Python prefers a cached file to the source that was verified; a repository is served without such files."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    folder = copy / "search" / "1"
    source = folder / "model.py"
    original = source.read_text()
    stamp = source.stat()
    planted = "raise SystemExit('planted')".ljust(len(original), "#")
    source.write_text(planted)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    py_compile.compile(str(source))
    source.write_text(original)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with Server(copy, address=Address.free()):
        pass
    assert not list(copy.rglob("__pycache__")), "the repository is not as it was published"


def test_model_that_cannot_start_shows_the_log(repository: Path, tmp_path: Path) -> None:
    """The manifest matches, and still the model fails: the end of the server's log says why."""
    from fuserec.manifest import FileRecord, Manifest

    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    model = copy / "search" / "1" / "model.py"
    model.write_text("raise RuntimeError('this model is broken on purpose')\n")
    manifest = Manifest.read(copy / "recommend" / "1")
    manifest.files["search/model.py"] = FileRecord.of(model)
    manifest.write(copy / "recommend" / "1")
    with pytest.raises(LaunchError, match="broken on purpose"):
        Server(copy, address=Address.free()).start()
