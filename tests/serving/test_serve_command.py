"""`fuserec serve` as a process: it says where it listens, serves `fuserec recommend`, leaves nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench._candidates import BROKEN, put_version
from fuserec.client import Recommender
from fuserec.serve.launcher import Address

pytestmark = pytest.mark.serving
FUSEREC = [sys.executable, "-m", "fuserec.cli"]


@dataclass
class Serving:
    process: subprocess.Popen[str]
    address: Address
    environment: dict[str, str]
    state: Path

    def children(self) -> set[int]:
        """Process ids of everything below the command, at the moment."""
        found, todo = set(), [self.process.pid]
        while todo:
            pid = todo.pop()
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                for child in map(int, task.read_text().split()):
                    found.add(child)
                    todo.append(child)
        return found

    def wait_until_ready(self) -> list[str]:
        lines = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line.rstrip())
            if line.startswith("try:"):
                return lines
        pytest.fail("the command ended before it was ready: " + "\n".join(lines))

    def wait_for(self, words: str) -> list[str]:
        """Read what the command prints up to the line that holds `words`."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip())
            if words in line:
                return lines
        pytest.fail(f"the command ended without {words!r}: " + "\n".join(lines))


def start(repository: Path, state: Path) -> Serving:
    address = Address.free()
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "COLUMNS": "200"}
    ports = [f"--{name}-port={port}" for name, port in address.ports.items()]
    process = subprocess.Popen(
        [*FUSEREC, "serve", str(repository), *ports],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    return Serving(process, address, environment, state / "fuserec")


def end(serving: Serving) -> None:
    serving.process.terminate()
    serving.process.communicate(timeout=60)


@pytest.fixture
def serving(repository: Path, tmp_path: Path) -> Iterator[Serving]:
    """The command, just started."""
    serving = start(repository, tmp_path)
    try:
        yield serving
    finally:
        end(serving)


@pytest.fixture(scope="module")
def kept(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The command, ready, over a repository that may be published into; tests leave it answering."""
    folder = tmp_path_factory.mktemp("kept")
    serving = start(Path(shutil.copytree(repository, folder / "repository")), folder)
    try:
        serving.wait_until_ready()
        yield serving
    finally:
        end(serving)


def gone(pids: set[int], within_s: float = 30.0) -> set[int]:
    """Wait until processes have ended; return those that have not."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        left = {pid for pid in pids if is_running(pid)}
        if not left:
            break
        time.sleep(0.1)
    return left


def is_running(pid: int) -> bool:
    try:
        # Ended processes stay as zombies where nobody reaps orphans; they hold nothing.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shared_memory(children: set[int]) -> set[str]:
    """What these processes hold, and not what other servers do at the same time."""
    return {path.name for pid in children for path in Path("/dev/shm").glob(f"fuserec_{pid}_*")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_signal_stops_everything(serving: Serving, number: signal.Signals) -> None:
    lines = serving.wait_until_ready()
    assert any(f"127.0.0.1:{serving.address.grpc_port}" in line for line in lines)
    children = serving.children()
    assert len(children) >= 4, "expected the server and a process for each of three models"
    assert shared_memory(children)
    serving.process.send_signal(number)
    assert serving.process.wait(60) == 0
    assert not gone(children), "processes were left behind"
    assert not shared_memory(children), "shared memory was left behind"
    assert not list((serving.state / "servers").iterdir()), "the note about the server was left behind"


def test_killed_command_leaves_no_orphans(serving: Serving) -> None:
    serving.wait_until_ready()
    children = serving.children()
    serving.process.kill()
    assert not gone(children), "the server outlived the command that started it"


def test_server_that_dies_is_started_again(kept: Serving) -> None:
    children = kept.children()
    [server] = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver"]
    os.kill(server, signal.SIGKILL)
    lines = kept.wait_for("answers again")
    assert any("the server was killed by signal 9; the end of its log:" in line for line in lines), lines
    assert not gone(children), "processes of the dead server were left behind"
    with Recommender(f"127.0.0.1:{kept.address.grpc_port}", timeout_ms=20_000) as recommender:
        assert len(recommender.recommend(user_id=5, k=3)) == 3


def test_hanging_up_ends_no_service(kept: Serving) -> None:
    """Without a terminal there is none that could have been closed; a rotation of logs sends it, too."""
    kept.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert kept.process.poll() is None
    with Recommender(f"127.0.0.1:{kept.address.grpc_port}", timeout_ms=20_000) as recommender:
        assert len(recommender.recommend(user_id=5, k=3)) == 3


def test_swap_and_rollback(kept: Serving, repository: Path) -> None:
    url = f"127.0.0.1:{kept.address.grpc_port}"

    def fuserec(*arguments: str) -> dict[str, object]:
        done = subprocess.run([*FUSEREC, *arguments, "--json"], capture_output=True, text=True, env=kept.environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert fuserec("publish", str(repository), "--to", url, "--force")["served"] == 2
    assert fuserec("rollback", url)["served"] == 1
    assert fuserec("traffic", url) | {"pinned": True} == fuserec("traffic", url)
    with Recommender(url, timeout_ms=20_000) as recommender:
        assert recommender.recommend(user_id=5, k=3).model_version == "1"
    assert fuserec("traffic", url, "--serve", "newest")["served"] == 2


def test_recommend_finds_the_titles(kept: Serving) -> None:
    def recommend(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*FUSEREC, "recommend", "--timeout-ms", "20000", *options]
        return subprocess.run(command, capture_output=True, text=True, env=kept.environment)

    for url in (f"127.0.0.1:{kept.address.grpc_port}", f"http://127.0.0.1:{kept.address.http_port}"):
        done = recommend("--url", url, "--user", "5", "-k", "3")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Item ") == 3, done.stdout
    done = recommend("--url", url, "--history", "1", "--exclude", "2", "-k", "3")
    assert "most popular items" in done.stdout and "ignored: 2 of the ids" in done.stdout
    done = recommend("--url", url, "--user", "5", "-k", "3", "--json")
    assert [set(item) for item in json.loads(done.stdout)["items"]] == [{"item_id", "score"}] * 3
    done = recommend("--url", url, "--user", "5", "-k", "299")
    assert "fewer than asked for" in done.stdout


def test_a_version_that_is_refused_fails_the_command(kept: Serving, repository: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(repository, tmp_path / "source"))
    put_version(source, files={"recommend/model.py": BROKEN})
    url = f"127.0.0.1:{kept.address.grpc_port}"
    command = [*FUSEREC, "publish", str(source), "--to", url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=kept.environment)
    assert done.returncode == 1, done.stdout
    message = json.loads(done.stdout)["error"]["message"]
    assert "does not take version" in message and "\n" not in message, "expected one line"
    told = subprocess.run([*FUSEREC, "traffic", url, "--json"], capture_output=True, text=True, env=kept.environment)
    standing = json.loads(told.stdout)
    assert standing["served"] < standing["wanted"] and str(standing["wanted"]) in standing["refused"]
    back = subprocess.run([*FUSEREC, "rollback", url], capture_output=True, text=True, env=kept.environment)
    assert back.returncode == 0 and f"going back to version {standing['served']}" in back.stdout, back.stderr
