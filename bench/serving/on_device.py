"""The server on a GPU beside FastAPI and torch on the same one.

    python -m bench.serving.on_device prepare --folder build/bench-gpu      # where fuserec[export] is installed
    python -m bench.serving.on_device measure --folder build/bench-gpu      # on the GPU host
    python -m bench.serving.on_device measure --folder build/bench-gpu --rehearse      # anywhere, tiny, on the CPU

`prepare` writes an untrained two-tower of 128 columns and its repository, a few MB that travel. `measure` makes the
large catalogues of it and loads both servers in turns. docs/gpu-hosts.md has what the host needs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl

from bench._output import log, write_csv
from bench.serving import contenders as who
from bench.serving.generator import Generator
from bench.serving.measure import CLOSED, Plan, Row, closed_loops, saturated
from bench.serving.repositories import large_repository, small_repository
from bench.serving.rival import RivalServer, Setup
from bench.serving.workload import Workload
from fuserec.contract import RECOMMEND
from fuserec.errors import FuserecError
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest, bundle_folder
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig

ITEMS: Final = (1_000_000, 10_000_000)
DIM: Final = 128
_TRAINED_ITEMS: Final = 2_000
_USERS: Final = 1_000
# The rival's answers are those of float16: near ties change places, the rest has to be the same.
_LEAST_AGREEMENT: Final = 0.9
_PLAN: Final = Plan(concurrencies=(1, 16, 64, 256), shares=(), seconds=2.0, rounds=2, warm_s=0.5)
_REHEARSAL: Final = Plan(concurrencies=(1, 8), shares=(), seconds=0.3, rounds=1, warm_s=0.1)
_REHEARSED_ITEMS: Final = (5_000,)


@dataclass(frozen=True)
class Trial:
    """What is measured.

    Attributes:
        folder: Of `prepare`; catalogues, calls and logs go there, too.
        device: Of both servers; `cpu` in a rehearsal.
        items: Sizes of the catalogues.
        plan: Callers, seconds and rounds.
        workers: Processes of uvicorn that are tried, each with a table of its own; the best counts.
        settings: How our server runs.
        indexes: By size, an index that is there already: 128 columns, ids from 0 on.
    """

    folder: Path
    device: Literal["cuda", "cpu"] = "cuda"
    items: Sequence[int] = ITEMS
    plan: Plan = _PLAN
    workers: Sequence[int] = (1, 4)
    settings: ServingConfig = ServingConfig()
    indexes: tuple[tuple[int, Path], ...] = ()

    @property
    def checkpoint(self) -> Path:
        """What `prepare` made."""
        return self.folder / "checkpoint"

    def bundle(self, n_items: int) -> Path:
        """Return the bundle of a catalogue, of the front door alone; it is made where it is not there."""
        small = bundle_folder(self.folder / "small")
        index = dict(self.indexes).get(n_items)
        return large_repository(small, self.folder / f"large-{n_items}", n_items, models=[RECOMMEND], index=index)


def prepare(folder: Path, onnxruntime: str | None = None) -> None:
    """Write the checkpoint and its repository; needs what an export needs, and no device.

    Args:
        folder: Where to.
        onnxruntime: Version that the GPU host has, where it is older than the one here. The graph is float32 and has
            standard operators alone, which the older one knows; the manifest says so, or the server would refuse it.
    """
    import torch

    from fuserec.models.checkpoint import Checkpoint
    from fuserec.models.registry import build_module

    rng = np.random.default_rng(0)
    # Ids are rows, so that any index of enough rows can take the place of the trained one.
    histories = [rng.integers(0, _TRAINED_ITEMS, rng.integers(3, 200)) for _ in range(_USERS)]
    counts = np.bincount(np.concatenate(histories), minlength=_TRAINED_ITEMS)
    ids = np.arange(_TRAINED_ITEMS)
    items = pl.DataFrame(
        {
            "item_id": ids,
            "title": [f"Item {item}" for item in ids],
            "genres": pl.Series([[]] * len(ids), dtype=pl.List(pl.String)),
            "year": pl.Series([2000] * len(ids), dtype=pl.Int32),
            "count": counts,
        }
    )
    users = pl.DataFrame({"user_id": np.arange(_USERS), "history": [history.tolist() for history in histories]})
    arguments: dict[str, object] = {"n_users": _USERS, "n_items": _TRAINED_ITEMS, "dim": DIM, "max_history": 50}
    torch.manual_seed(0)
    module = build_module("two-tower", arguments)
    note = {"note": "untrained: what it costs does not depend on what it learnt"}
    Checkpoint("two-tower", arguments, items, users, note, module.state_dict(), None).save(folder / "checkpoint")
    bundle = small_repository(folder / "checkpoint", folder / "small")
    if onnxruntime is not None:
        manifest = Manifest.read(bundle)
        for part in manifest.parts.values():
            part.engines["cpu"] = replace(part.engines["cpu"], runtime_version=onnxruntime)
        manifest.write(bundle)


def check_environment() -> None:
    """Raise unless the processes of the models would find what this one has: they do not look at PYTHONPATH.

    Raises:
        SystemExit: They would find something else.
    """
    code = "import numba, numpy, onnxruntime, fuserec.serve.pipeline as p; print(numpy.__version__, p.__file__)"
    found = [
        subprocess.run([sys.executable, *isolated, "-c", code], capture_output=True, text=True, check=False)
        for isolated in ((), ("-I",))
    ]
    if found[1].returncode or found[0].stdout != found[1].stdout:
        last = (found[1].stderr.strip().splitlines() or [found[1].stdout.strip()])[-1]
        raise SystemExit(
            f"the processes of the models would not find what this one does ({last}): they do not look at PYTHONPATH; "
            "bash bench/serving/host.sh WHEELS VENV makes an environment that they take"
        )


def measure(trial: Trial) -> Iterator[Row]:
    """Yield rows: at each concurrency one a contender, and at the end of a catalogue what each answered at most."""
    for n_items in trial.items:
        began = time.monotonic()
        bundle = trial.bundle(n_items)
        log(f"{n_items:,} items: the catalogue is there after {time.monotonic() - began:.1f} s")
        yield from _measure(trial, bundle, n_items)


def _measure(trial: Trial, bundle: Path, n_items: int) -> Iterator[Row]:
    calls = Workload().draw(pl.read_parquet(bundle / "users.parquet"))
    settings = replace(trial.settings, device=trial.device)
    rows: list[Row] = []
    began = time.monotonic()
    with Generator() as generator, Server(bundle.parents[1], address=Address.free(), settings=settings) as server:
        start_s = time.monotonic() - began
        log(f"{n_items:,} items: ours answers after {start_s:.1f} s on {server.device}")
        ours = who.ours(server, calls, trial.folder, http=False, noop=False)
        for workers in trial.workers:
            setup = Setup(workers, threads=2, device=trial.device)
            with RivalServer(trial.checkpoint, bundle, setup, trial.folder / "rival.log") as running:
                both = [*ours, who.rival(running, calls, trial.folder)]
                common = who.agreement(both, calls)
                if common < _LEAST_AGREEMENT:
                    raise SystemExit(f"{setup.name} has {common:.1%} of our items; nothing was measured")
                about = {"items": n_items, "device": trial.device, "in_common": round(common, 4)}
                for row in closed_loops(generator, both, trial.plan, about):
                    rows.append(row | {"saturated_qps": None, "start_s": None})
                    yield rows[-1]
        for name in dict.fromkeys(row["contender"] for row in rows):
            most: Row = {"items": n_items, "device": trial.device, "contender": name, "load": CLOSED}
            most |= {"saturated_qps": saturated(rows, name), "start_s": round(start_s, 1)}
            yield dict.fromkeys(rows[0]) | most


def described(rows: Sequence[Row]) -> Iterator[str]:
    """Yield lines for people."""
    for row in rows:
        head = f"{row['items']:>11,} items  {row['contender']:<22}"
        if row["saturated_qps"] is not None:
            yield f"{head} at most {row['saturated_qps']:>9,.0f} answers/s"
        else:
            yield (
                f"{head} {row['concurrency']:>4} callers {row['qps']:>9,.0f} answers/s   p50 {row['p50_ms']:.2f} ms   "
                f"p99 {row['p99_ms']:.2f} ms   batch {row['batch'] or '-'}   errors {row['errors']}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving.on_device", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("what", choices=("prepare", "measure"))
    add("--folder", type=Path, default=Path("build/bench-gpu"), help="for the checkpoint, repositories, calls and logs")
    add("--onnxruntime", metavar="VERSION", help="that of the GPU host, where it is older than the one here (prepare)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="of both servers (cuda)")
    add("--items", type=int, nargs="+", help="sizes of the catalogues (1000000 10000000)")
    add("--index", type=Path, nargs="*", default=[], help="indexes that are there: 128 columns, ids from 0 on")
    add("--concurrency", type=int, nargs="+", help="callers of the closed loops (1 16 64 256)")
    add("--seconds", type=float, help="of each block (2)")
    add("--rounds", type=int, help="blocks of each contender at each load (2)")
    add("--workers", type=int, nargs="+", help="processes of the rival that are tried (1 4)")
    add("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="of our server")
    add("--rehearse", action="store_true", help="every step on the CPU and tiny, to see that it works")
    add("--csv", type=Path, help="write the rows here")
    options = parser.parse_args(arguments)
    # Absolute: the rival runs in the folder that `bench` lies in.
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.what == "prepare":
            prepare(folder, options.onnxruntime)
            return 0
        check_environment()
        rows: list[Row] = []
        for row in measure(_trial(options, folder)):
            rows.append(row)
            print(*described([row]), flush=True)
            if options.csv:  # again after every row, so that a run cut short has what it measured
                write_csv(options.csv, rows)
    except FuserecError as error:
        raise SystemExit(str(error)) from None
    return 0


def _trial(options: argparse.Namespace, folder: Path) -> Trial:
    rehearse = options.rehearse
    plan = _REHEARSAL if rehearse else _PLAN
    given = {
        "concurrencies": options.concurrency and tuple(options.concurrency),
        "seconds": options.seconds,
        "rounds": options.rounds,
    }
    return Trial(
        folder,
        device="cpu" if rehearse else options.device,
        items=options.items or (_REHEARSED_ITEMS if rehearse else ITEMS),
        plan=replace(plan, **{name: value for name, value in given.items() if value}),
        workers=options.workers or ((1,) if rehearse else (1, 4)),
        settings=ServingConfig.parse(options.settings),
        indexes=tuple((ItemIndex.load(path).rows, path.absolute()) for path in options.index),
    )


if __name__ == "__main__":
    sys.exit(main())
