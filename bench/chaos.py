"""Faults under load, and what the callers saw of them: `python -m bench.chaos --repository DIR`.

Clients ask without a pause while processes are killed or stopped, queues run full and versions change. Every answer is
compared with what the bundle that it names answers in one process. A call is lost if it ends in no typed error or ends
after its deadline. Calls that fail with a typed error inside their deadline are counted, and the time from the fault to
the last of them is the recovery time. Everything listens on loopback and ends with the run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench._faults import FAULTS, K, Site
from bench._output import add_output_options, report
from fuserec.client import ClientError, Recommender
from fuserec.export import rollout
from fuserec.kernels import ItemIndex
from fuserec.manifest import FileRecord, Manifest, bundle_folder
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.users import NO_IDS

USERS = 200
CALLERS = 4
# A call may end so long after its deadline: what a thread of Python may wait for its turn on a loaded machine.
GRACE_S = 0.5
SETTLE_S = 3.0
RECOVERY_LIMIT_S = 120.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repository", type=Path, default=Path("build/repository"), help="repository of a retriever; it is copied"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS), help="which to try")
    which.add_argument("--all", action="store_true", help="try every fault, as is done by default")
    parser.add_argument("--markdown", type=Path, help="write the table here, for the documentation")
    parser.add_argument("--timeout-ms", type=float, default=2_000.0, help="deadline of a call")
    add_output_options(parser)
    return parser.parse_args(arguments)


@dataclass
class Call:
    """One call: when it began and ended, what came, and whether that was right."""

    began: float
    ended: float
    outcome: str


@dataclass(frozen=True)
class Right:
    """What versions answer; those that faults put in have the answers of the version that they are copies of."""

    known: dict[str, dict[int, list[int]]]

    def of(self, version: str) -> dict[int, list[int]]:
        """Return the answers of a version by user."""
        return self.known.get(version, self.known["1"])


@dataclass
class Callers:
    """Threads that ask without a pause; a context manager."""

    urls: Sequence[str]
    timeout_ms: float
    users: Sequence[int]
    right: Right
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
        return bool(self.right.of(version).get(user) == ids.tolist())

    def wait_until_well(self, since: float) -> None:
        """Return when calls that began after `since` have gone right for a while."""
        while time.monotonic() - since < RECOVERY_LIMIT_S:
            time.sleep(0.2)
            bad = [call.ended for call in self.calls if call.ended > since and call.outcome != "right"]
            last = max([since, *bad])
            good = [call for call in self.calls if call.began > last and call.outcome == "right"]
            if time.monotonic() - last > SETTLE_S and len(good) > 20:
                return


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


def measure(name: str, repository: Path, users: Sequence[int], right: Right, timeout_ms: float) -> dict[str, Any]:
    """Run one fault and return its row."""
    fault = FAULTS[name]
    # The servers' log and repositories are left to nobody; a version that is being read may still be there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
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


def write_markdown(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table of the documentation."""
    lines = ["| fault | calls | wrong | lost | failed with a typed error | the last of them after |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        what = (FAULTS[row["fault"]].do.__doc__ or row["fault"]).splitlines()[0].rstrip(".")
        after = f"{row['recovered_s']} s" if row["failed"] else ""
        lines.append(f"| {what} | {row['calls']:,} | {row['wrong']} | {row['lost']} | {row['failed']} | {after} |")
    path.write_text("\n".join(lines) + "\n")


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
        right = Right({version: answers_of(copy / "recommend" / version, users) for version in ("1", "2")})
        for name in options.faults:
            yield measure(name, copy, users, right, options.timeout_ms)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each fault as it is done; the status is 1 if an answer was wrong or a call was lost."""
    options = parse(arguments)
    rows = report(run(options), csv_path=options.csv, as_json=options.json)
    if options.markdown:
        write_markdown(options.markdown, rows)
    return 1 if any(row["wrong"] or row["lost"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
