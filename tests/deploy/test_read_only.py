"""The server as its container runs it: nothing can be written but /tmp, and no capabilities are left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuserec.client import Recommender
from fuserec.manifest import bundle_folder
from fuserec.serve.launcher import Address

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
# In a mount namespace of its own: everything is read-only but /tmp, where the python backend makes a folder whatever
# it is told; and of that, the models "$1" are. "$2" is where numba keeps what other tests have compiled.
SEALED = """
set -e
mount --bind /tmp /tmp
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount --bind "$2" "$2"
mount -o remount,bind,ro /
shift 2
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


@pytest.fixture(scope="module")
def compiled() -> Path:
    """Where numba keeps what the models run: beside the sources that an interpreter finds which is told nothing.

    The processes of the models are such (bundled server, isolated mode), whatever PYTHONPATH the launcher has.
    """
    where = "import fuserec.kernels.search; print(fuserec.kernels.search.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", where], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip()).parent / "__pycache__"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def sealed(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """Return what runs a command over a folder that is read-only; skip where a namespace cannot be made."""

    def prefix(models: Path) -> list[str]:
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", SEALED, "sh", str(models), str(compiled)]

    try:
        done = subprocess.run([*prefix(tmp_path_factory.mktemp("probe")), "true"], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if done.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()}")
    return prefix


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What the image sets, with a folder of the test in the place of its /tmp."""
    found = re.findall(r"\b([A-Z_]+)=(/tmp\S*)", DOCKERFILE.read_text())
    assert len(found) == 4, found
    image = {name: path.replace("/tmp", str(tmp_path)) for name, path in found}
    # Compiling once more, in each process of a model, would take a minute.
    del image["NUMBA_CACHE_DIR"]
    return {**os.environ, **image, "COLUMNS": "200"}


def serve(repository: Path, address: Address) -> list[str]:
    ports = [f"--{name}-port={port}" for name, port in address.ports.items()]
    return [sys.executable, "-m", "fuserec.cli", "serve", str(repository), *ports]


@pytest.mark.serving
def test_it_serves_and_stops(
    repository: Path, environment: dict[str, str], sealed: Callable[[Path], list[str]]
) -> None:
    # One process compiles, if nobody has, so that the server's four do not do it all at once.
    warm = "import sys, pathlib, fuserec.serve.pipeline as p; p.Pipeline.open(pathlib.Path(sys.argv[1])).warm_up()"
    subprocess.run([sys.executable, "-I", "-c", warm, str(bundle_folder(repository))], check=True)
    address = Address.free()
    process = subprocess.Popen(
        [*sealed(repository), *serve(repository, address)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("try:"):
                break
        else:
            pytest.fail("the server did not start: " + "".join(lines))
        with Recommender(f"grpc://127.0.0.1:{address.grpc_port}", timeout_ms=10_000) as client:
            assert len(client.recommend(history=[1000], k=5)) == 5
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert time.monotonic() - begun < 40, "longer than what Compose and the chart grant"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list(repository.rglob("__pycache__"))


def test_bytecode_that_cannot_be_removed_is_refused(
    repository: Path, environment: dict[str, str], sealed: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    """Python would take it for the source that the manifest vouches for."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    (copy / "recommend" / "1" / "__pycache__").mkdir()
    done = subprocess.run(
        [*sealed(copy), *serve(copy, Address.free())], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode != 0
    assert "cannot be removed" in done.stderr, done.stderr
