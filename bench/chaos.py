"""Faults under load, and what the callers saw of them: `python -m bench.chaos --repository DIR`.

Clients ask without a pause while processes are killed or stopped, queues run full and versions change. Every answer is
compared with what the bundle that it names answers in one process. A call is lost if it ends in no typed error or ends
after its deadline. Calls that fail with a typed error inside their deadline are counted, and the time from the fault to
the last of them is the recovery time. Everything listens on loopback and ends with the run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench._output import add_output_options, report
from fuserec.client import ClientError, Recommender
from fuserec.errors import LaunchError
from fuserec.export import rollout
from fuserec.kernels import ItemIndex
from fuserec.manifest import FileRecord, Manifest, bundle_folder
from fuserec.serve.launcher import Address, Server
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.processes import process_ids
from fuserec.serve.query import Query
from fuserec.serve.settings import ServingConfig
from fuserec.serve.supervisor import Supervisor, Watch
from fuserec.serve.users import NO_IDS

K = 10
USERS = 200
CALLERS = 4
# A call may end so long after its deadline: what a thread of Python may wait for its turn on a loaded machine.
GRACE_S = 0.5
SETTLE_S = 3.0
RECOVERY_LIMIT_S = 120.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, required=True, help="repository of a retriever; it is copied")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS), help="which to try")
    parser.add_argument("--timeout-ms", type=float, default=2_000.0, help="deadline of a call")
    add_output_options(parser)
    return parser.parse_args(arguments)


@dataclass
class Call:
    """One call: when it began and ended, what came, and whether that was right."""

    began: float
    ended: float
    outcome: str


@dataclass
class Callers:
    """Threads that ask without a pause; a context manager."""

    urls: Sequence[str]
    timeout_ms: float
    users: Sequence[int]
    right: dict[str, dict[int, list[int]]]
    threads: int = CALLERS
    retries: int = 3
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.threads)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        generator = np.random.default_rng(number)
        with Recommender(self.urls, timeout_ms=self.timeout_ms, retries=self.retries) as client:
            while not self._stop.is_set():
                user = int(generator.choice(self.users))
                began = time.monotonic()
                try:
                    answer = client.recommend(user_id=user, k=K)
                    outcome = "right" if self._is_right(answer.model_version, user, answer.item_ids) else "wrong"
                except ClientError as error:
                    outcome = type(error).__name__
                except Exception as error:  # what no caller should ever see
                    outcome = f"untyped {type(error).__name__}"
                self.calls.append(Call(began, time.monotonic(), outcome))
                if outcome != "right":
                    time.sleep(0.05)  # as a backend would turn to something else

    def _is_right(self, version: str, user: int, ids: Any) -> bool:
        return bool(self.right.get(version, {}).get(user) == ids.tolist())

    def wait_until_well(self, since: float) -> None:
        """Return when calls that began after `since` have gone right for a while."""
        while time.monotonic() - since < RECOVERY_LIMIT_S:
            time.sleep(0.2)
            bad = [call.ended for call in self.calls if call.ended > since and call.outcome != "right"]
            last = max([since, *bad])
            good = [call for call in self.calls if call.began > last and call.outcome == "right"]
            if time.monotonic() - last > SETTLE_S and len(good) > 20:
                return


class Site:
    """Servers over copies of a repository, each with its supervisor; a context manager."""

    def __init__(self, repository: Path, folder: Path, settings: Sequence[ServingConfig]) -> None:
        self._stack = contextlib.ExitStack()
        self.servers = []
        self.events: list[str] = []
        for number, setting in enumerate(settings):
            copy = Path(shutil.copytree(repository, folder / f"repository-{number}"))
            self.servers.append(Server(copy, address=Address.free(), settings=setting))

    def __enter__(self) -> Site:
        try:
            for server in self.servers:
                self._stack.enter_context(server)
            stop = threading.Event()
            for server in self.servers:
                supervisor = Supervisor(server, Watch(tick_s=0.25, canary_s=1.0), self.events.append)
                thread = threading.Thread(target=supervisor.run, args=(stop,))
                thread.start()
                self._stack.callback(thread.join)
            self._stack.callback(stop.set)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def urls(self) -> list[str]:
        """Where the servers listen."""
        return [f"127.0.0.1:{server.address.grpc_port}" for server in self.servers]


def kill_one_process(site: Site) -> None:
    """Kill -9 of one of the processes of `recommend`."""
    os.kill(process_ids(site.servers[0].pid, "recommend")[0], signal.SIGKILL)


def kill_all_processes(site: Site) -> None:
    """Kill -9 of all processes of `recommend`."""
    for pid in process_ids(site.servers[0].pid, "recommend"):
        os.kill(pid, signal.SIGKILL)


def kill_server(site: Site) -> None:
    """Kill -9 of the server."""
    os.kill(site.servers[0].pid, signal.SIGKILL)


def stop_a_process(site: Site) -> None:
    """A model that hangs for three seconds: one of its processes is stopped and goes on."""
    pid = process_ids(site.servers[0].pid, "recommend")[0]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(3.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def fill_the_queue(site: Site) -> None:
    """Sixty-four more callers for three seconds, at a queue of four."""
    url = site.urls[0]
    until = time.monotonic() + 3.0

    def ask() -> None:
        with Recommender(url, timeout_ms=2_000.0, retries=0) as client:
            while time.monotonic() < until:
                with contextlib.suppress(ClientError):
                    client.recommend(user_id=1, k=K)

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def swap_and_back(site: Site) -> None:
    """Another version is served, and then the first again."""
    server = site.servers[0]
    for version in (2, 1):
        rollout.serve(server.repository, version)
        deadline = time.monotonic() + RECOVERY_LIMIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(LaunchError):  # it is being started again
                if server.manifest.version == version:
                    break
            time.sleep(0.05)


@dataclass(frozen=True)
class Fault:
    """What is done, to how many servers, run how."""

    do: Callable[[Site], None]
    servers: int = 1
    settings: ServingConfig = field(default_factory=ServingConfig)


FAULTS = {
    "kill-one-process": Fault(kill_one_process),
    "kill-all-processes": Fault(kill_all_processes),
    "kill-server": Fault(kill_server),
    "hanging-process": Fault(stop_a_process),
    "full-queue": Fault(fill_the_queue, settings=ServingConfig(queue_size=4)),
    "half-the-endpoints": Fault(kill_server, servers=2),
    "swap-and-back": Fault(swap_and_back),
}


def add_other_version(repository: Path) -> None:
    """Add a second version whose answers are others: each item has the vector of another one; the first is pinned."""
    bundle = bundle_folder(repository)
    for model in Manifest.read(bundle).models:
        shutil.copytree(repository / model / bundle.name, repository / model / "2")
    other = bundle.with_name("2")
    index = ItemIndex.load(other / "index.safetensors")
    order = np.random.default_rng(0).permutation(index.rows)
    ItemIndex.build(np.array(index.embeddings)[order], np.array(index.ids), metric=index.metric).save(
        other / "index.safetensors"
    )
    manifest = Manifest.read(other)
    name = f"{manifest.models[0]}/index.safetensors"
    manifest.files[name] = FileRecord.of(other / "index.safetensors")
    manifest.write(other)
    rollout.serve(repository, 1)


def answers_of(bundle: Path, users: Sequence[int]) -> dict[int, list[int]]:
    """Return what a bundle answers, asked in this process."""
    queries = [Query(user, NO_IDS, NO_IDS, K) for user in users]
    answers = Pipeline.open(bundle).recommend(queries)
    return {query.user_id: answer.item_ids.tolist() for query, answer in zip(queries, answers, strict=True)}


def measure(
    name: str, repository: Path, users: Sequence[int], right: dict[str, Any], timeout_ms: float
) -> dict[str, Any]:
    """Run one fault and return its row."""
    fault = FAULTS[name]
    with tempfile.TemporaryDirectory() as folder:
        site = Site(repository, Path(folder), [fault.settings] * fault.servers)
        with site, Callers(site.urls, timeout_ms, users, right) as callers:
            time.sleep(2.0)
            began = time.monotonic()
            fault.do(site)
            callers.wait_until_well(began)
        return row_of(name, callers.calls, began, timeout_ms)


def row_of(name: str, calls: Sequence[Call], began: float, timeout_ms: float) -> dict[str, Any]:
    """Sum up the calls around a fault that began at a time."""
    outcomes = Counter(call.outcome for call in calls)
    failed = [call for call in calls if call.outcome != "right"]
    late = [call for call in calls if call.ended - call.began > timeout_ms / 1e3 + GRACE_S]
    typed = {kind: count for kind, count in outcomes.items() if kind not in ("right", "wrong") and " " not in kind}
    times_ms = [1e3 * (call.ended - call.began) for call in calls]
    return {
        "fault": name,
        "calls": len(calls),
        "right": outcomes["right"],
        "wrong": outcomes["wrong"],
        "failed": sum(typed.values()),
        "lost": len(late) + sum(count for kind, count in outcomes.items() if " " in kind),
        "recovered_s": round(max([0.0, *(call.ended - began for call in failed)]), 1),
        "p50_ms": round(float(np.percentile(times_ms, 50)), 1),
        "p99_ms": round(float(np.percentile(times_ms, 99)), 1),
        "errors": " ".join(f"{kind}:{count}" for kind, count in sorted(typed.items())) or "-",
    }


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Try each fault in turn."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        source = bundle_folder(options.repository)
        for model in Manifest.read(source).models:
            shutil.copytree(options.repository / model / source.name, copy / model / "1")
            shutil.copyfile(copy / model / "1" / "config.pbtxt", copy / model / "config.pbtxt")
        add_other_version(copy)
        users = pl.read_parquet(copy / "recommend" / "1" / "users.parquet")["user_id"].head(USERS).to_list()
        right = {version: answers_of(copy / "recommend" / version, users) for version in ("1", "2")}
        for name in options.faults:
            yield measure(name, copy, users, right, options.timeout_ms)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each fault as it is done; the status is 1 if an answer was wrong or a call was lost."""
    options = parse(arguments)
    rows = report(run(options), csv_path=options.csv, as_json=options.json)
    return 1 if any(row["wrong"] or row["lost"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
