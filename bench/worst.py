"""The worst requests that a server may be sent: what each costs, and what other callers see of it.

`python -m bench.worst --items 500000 --csv worst.csv` asks a pipeline in this process, each kind in turns with a plain
call of as many rows and items: milliseconds of the processor, whose ratio holds on a busy machine. With
`--repository DIR` it serves that repository and keeps a few callers asking the worst of it, beside light calls whose
p50 and p99 are taken in turns with and without the others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from bench._output import add_output_options, log, report
from fuserec.client import ClientError, Recommender
from fuserec.client import Query as Call
from fuserec.contract import MAX_BATCH
from fuserec.kernels import ItemIndex
from fuserec.rules import MAX_DIVERSE_K, Rules
from fuserec.serve.engines import Engine, Tensors
from fuserec.serve.launcher import Address, Server
from fuserec.serve.limits import Limits
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.popularity import Popularity
from fuserec.serve.query import Query
from fuserec.serve.settings import ServingConfig
from fuserec.serve.stores import Categories, UserStore
from fuserec.serve.users import NO_IDS, Users

_CATEGORIES: Final = tuple(f"c{number}" for number in range(18))
# Shares of the catalogue as those of MovieLens' genres are, and as many combinations of them.
_SHARES: Final = (
    0.43,
    0.3,
    0.15,
    0.15,
    0.15,
    0.15,
    0.08,
    0.08,
    0.07,
    0.06,
    0.05,
    0.04,
    0.04,
    0.03,
    0.02,
    0.02,
    0.015,
    0.01,
)
_COMBINATIONS: Final = 300
_USERS: Final = 200
_SEEN: Final = 20


def kinds(k: int, categories: Sequence[str] = _CATEGORIES) -> dict[str, Rules]:
    """Return rules by what is bad about them; the first are none."""
    first, second, third = (categories[at % len(categories)] for at in (3, 7, 17))
    one = {first: 0.5}
    return {
        "plain": Rules(),
        "caps: 2 of each": Rules(caps={"*": 2}),
        "caps: two categories": Rules(caps={categories[0]: 1, first: 2}),
        "caps that just fill k": Rules(caps={"*": max(1, k // len(categories))}),
        "a boost": Rules(boosts=one),
        "boosts beyond all scores": Rules(boosts={third: 1e7, second: -1e6, first: 1e6}),
        "a boost for each category": Rules(boosts={name: number**2 / 3 for number, name in enumerate(categories)}),
        "diversity 0.3": Rules(diversity=0.3),
        "diversity 1": Rules(diversity=1.0),
        "all three": Rules(one, {"*": 30}, 0.3),
    }


class _Table(Engine):
    """A user tower that looks the vector up."""

    def __init__(self, vectors: Any) -> None:
        self._vectors = vectors

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch."""
        return {"user_vector": self._vectors[inputs["user"]]}


def make(n_items: int, dim: int, *, clustered: bool) -> Pipeline:
    """Return a pipeline over random items. Clustered ones lie around the centre of their only category."""
    rng = np.random.default_rng(0)
    ids = np.arange(n_items) * 2 + 1
    vectors = rng.standard_normal((n_items, dim), dtype=np.float32)
    if clustered:
        homes = rng.integers(0, len(_CATEGORIES), n_items)
        vectors += 1.5 * rng.standard_normal((len(_CATEGORIES), dim), dtype=np.float32)[homes]
        sets = pl.Series([[name] for name in _CATEGORIES], dtype=pl.List(pl.String)).gather(homes)
    else:
        has = rng.random((_COMBINATIONS, len(_CATEGORIES))) < _SHARES
        combinations = [[name for name, there in zip(_CATEGORIES, row, strict=True) if there] for row in has]
        chosen = np.minimum(rng.zipf(1.3, n_items) - 1, rng.integers(0, _COMBINATIONS, n_items))
        sets = pl.Series(combinations, dtype=pl.List(pl.String)).gather(chosen)
    store = UserStore(np.arange(_USERS), ids[: _USERS * _SEEN], np.arange(_USERS + 1) * _SEEN)
    pipeline = Pipeline(
        _Table(rng.standard_normal((_USERS + 1, dim), dtype=np.float32)),
        ItemIndex.build(vectors, ids),
        Popularity(ids, np.zeros(n_items, dtype=np.int64)),
        Users(ids, store),
        max_history=5,
        categories=Categories(ids, sets),
    )
    pipeline.warm_up()
    return pipeline


def costs(
    pipeline: Pipeline, batches: Sequence[int], ks: Sequence[int], rounds: int, name: str
) -> Iterator[dict[str, Any]]:
    """Yield what each kind of request costs, beside a plain one."""
    limits = Limits()
    for batch in batches:
        for k in ks:
            asked = {}
            for kind, rules in kinds(k).items():
                if rules.diversity and (k > MAX_DIVERSE_K or batch * k > limits.max_diverse_items):
                    continue
                asked[kind] = [Query(user, NO_IDS, NO_IDS, k, rules=rules) for user in range(batch)]
            taken: dict[str, list[float]] = {kind: [] for kind in asked}
            for queries in asked.values():
                pipeline.recommend(queries)
            for _ in range(rounds):
                for kind, queries in asked.items():
                    begin = time.process_time()
                    pipeline.recommend(queries)
                    taken[kind].append(1e3 * (time.process_time() - begin))
            plain = statistics.median(taken["plain"])
            for kind, times in taken.items():
                ms = statistics.median(times)
                yield {
                    "items": name,
                    "rows": batch,
                    "k": k,
                    "rules": kind,
                    "ms": f"{ms:.1f}",
                    "times plain": f"{ms / plain:.1f}",
                }


class _Callers:
    """Threads that ask the same without a pause; a context manager."""

    def __init__(self, url: str, ask: Callable[[Recommender], object], count: int, timeout_ms: float) -> None:
        self._url, self._ask, self._timeout_ms = url, ask, timeout_ms
        self.outcomes: list[tuple[str, float]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> _Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with Recommender(self._url, timeout_ms=self._timeout_ms, retries=0) as client:
            while not self._stop.is_set():
                begin = time.perf_counter()
                try:
                    self._ask(client)
                    outcome = "answered"
                except ClientError as error:
                    outcome = type(error).__name__
                self.outcomes.append((outcome, 1e3 * (time.perf_counter() - begin)))


def beside(repository: Path, heavy: int, seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield what light calls see while others ask the worst, in turns with having the server for themselves."""
    items = pl.read_parquet(next(repository.glob("recommend/*/items.parquet")))
    categories = items["genres"].explode().drop_nulls().unique().sort().head(len(_CATEGORIES)).to_list()
    users = pl.read_parquet(next(repository.glob("recommend/*/users.parquet")))["user_id"].head(MAX_BATCH).to_list()
    most = min(len(items), 10_000)

    def worst(kind: str, k: int) -> Callable[[Recommender], object]:
        rules = kinds(k, categories)[kind]
        return lambda client: client.recommend_many([Call(user_id=user, k=k, rules=rules) for user in users])

    def light(client: Recommender) -> object:
        return client.recommend(user_id=users[0], k=10)

    with Server(repository, address=Address.free(), settings=ServingConfig()) as server:
        url = f"127.0.0.1:{server.address.grpc_port}"
        asked = {
            "nobody else": None,
            f"{heavy} x 64 rows, k = {most}": worst("plain", most),
            f"{heavy} x 64 rows, k = {most}, caps": worst("caps that just fill k", most),
            f"{heavy} x 64 rows, k = {most}, boosts": worst("a boost for each category", most),
            f"{heavy} x 64 rows, k = 150, diversity": worst("diversity 1", 150),
        }
        seen: dict[str, list[float]] = {name: [] for name in asked}
        failed = dict.fromkeys(asked, 0)
        others: dict[str, list[tuple[str, float]]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, ask in asked.items():
                with _Callers(url, ask or light, heavy if ask else 0, 5_000.0) as dear:
                    time.sleep(0.5)
                    with _Callers(url, light, 1, 2_000.0) as callers:
                        time.sleep(seconds)
                seen[name] += [ms for outcome, ms in callers.outcomes if outcome == "answered"]
                failed[name] += sum(outcome != "answered" for outcome, _ in callers.outcomes)
                others[name] += dear.outcomes
        alone = np.percentile(seen["nobody else"], 99)
        for name, times in seen.items():
            median, last = np.percentile(times, (50, 99))
            answered = [ms for outcome, ms in others[name] if outcome == "answered"]
            yield {
                "beside": name,
                "light calls": len(times),
                "failed": failed[name],
                "p50 ms": f"{median:.2f}",
                "p99 ms": f"{last:.2f}",
                "p99, times alone": f"{last / alone:.1f}",
                "heavy answered": len(answered),
                "heavy p50 ms": f"{statistics.median(answered):.0f}" if answered else None,
                "heavy not answered": len(others[name]) - len(answered),
            }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.worst", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=500_000, help="items of the catalogue (500000)")
    parser.add_argument("--dim", type=int, default=64, help="length of a vector (64)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="rows of a request (1 64)")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100, 1_000, 10_000], help="items of a list")
    parser.add_argument("--clustered", action="store_true", help="items of a category are alike")
    parser.add_argument("--rounds", type=int, default=3, help="times that all kinds take turns (3)")
    parser.add_argument("--repository", type=Path, help="serve this one, and ask light calls beside the worst")
    parser.add_argument("--heavy", type=int, default=2, help="callers of the worst (2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of light calls beside each (4)")
    add_output_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a line as each row is there."""
    options = parse(arguments)
    if options.repository:
        rows = beside(options.repository, options.heavy, options.seconds, options.rounds)
    else:
        import numba

        numba.set_num_threads(1)  # as one of two processes on two cores
        log(f"making {options.items:,} items of {options.dim} numbers")
        name = "clustered" if options.clustered else "mixed"
        pipeline = make(options.items, options.dim, clustered=options.clustered)
        rows = costs(pipeline, options.batch, options.k, options.rounds, name)
    report(rows, csv_path=options.csv, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
