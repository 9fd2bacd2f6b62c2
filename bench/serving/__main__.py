"""Loads the whole service beside its rivals: `python -m bench.serving --csv serving.csv --plot serving.png`.

Without a checkpoint of your own, run `make demo` first. Method and figures are in docs/serving-bench.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from bench import _limits
from bench._output import log, write_csv
from bench.serving import contenders as who
from bench.serving.arena import SETUP_NAMES, Arena, describe, setup_named
from bench.serving.generator import Generator
from bench.serving.measure import Plan, Row, closed_loops, open_loops, saturated
from bench.serving.repositories import LARGE, SMALL
from bench.serving.soak import Soaked, soak
from bench.serving.table import lines, plot
from bench.serving.targets import TAIL_SHARE_PCT, targets
from bench.serving.workload import Workload
from fuserec.errors import FuserecError

_QUICK = Plan(concurrencies=(1, 8), shares=(70,), seconds=0.6, rounds=1, warm_s=0.2)
_QUICK_ITEMS = 20_000
_CALIBRATION = Plan(concurrencies=(16, 32, 64), shares=(), seconds=5.0, rounds=1, warm_s=1.0)
_PACKAGES = ("nvidia-pytriton", "torch", "faiss-cpu", "fastapi", "uvicorn", "onnxruntime", "numba", "grpcio")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        default=Path("build/demo/checkpoint"),
        help="a trained retriever; made by `make demo`",
    )
    add("--folder", type=Path, default=Path("build/bench-serving"), help="for the repositories, the calls and the logs")
    add(
        "--catalogues", nargs="+", choices=(SMALL, LARGE), default=[SMALL, LARGE], help="the checkpoint's, and a larger"
    )
    add("--large-items", type=int, help="items of the large one (1,000,000)")
    add(
        "--histories",
        type=float,
        metavar="SHARE",
        default=Workload.with_history,
        help="of the calls bring a history of their own, 0 to 1 (0.5)",
    )
    add("--concurrency", type=int, nargs="+", help="callers of the closed loops (1 2 4 ... 64)")
    add("--shares", type=float, nargs="*", help="open loops, in percent of saturation (10 30 50 70 80 90 100)")
    add("--seconds", type=float, help="of each block (5)")
    add("--rounds", type=int, help="blocks of each contender at each load (3)")
    add(
        "--rival", choices=SETUP_NAMES, default=None, help="uvicorn's workers by threads; tried beforehand unless given"
    )
    add("--quick", action="store_true", help="a run of about a minute, to see that it works")
    add("--soak", type=float, metavar="MINUTES", help=f"in place of all that: {TAIL_SHARE_PCT} %% load, memory watched")
    add("--csv", type=Path, help="write the rows here, or the samples of a soak")
    add("--plot", type=Path, help="draw latency against throughput here (PNG)")
    add("--json", action="store_true", help="print everything as JSON in place of the table")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what is measured: the full plan, or the quick one, with what was given in its place."""
    given = {
        "concurrencies": options.concurrency and tuple(options.concurrency),
        "shares": options.shares if options.shares is None else tuple(options.shares),
        "seconds": options.seconds,
        "rounds": options.rounds,
    }
    base = _QUICK if options.quick else Plan()
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def measure(arena: Arena, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of all catalogues."""
    plan = plan_of(options)
    rival = setup_named(options.rival or ("2x1" if options.quick else "best"))
    for catalogue in options.catalogues:
        log(f"{catalogue}: making the repository, starting the servers")
        bundle = arena.bundle(catalogue)
        about = describe(catalogue, bundle)
        with Generator() as generator, arena.contenders(bundle, generator, rival, plan) as contenders:
            closed = []
            for row in closed_loops(generator, contenders, plan, about):
                closed.append(row)
                yield row
            yield from open_loops(generator, contenders, plan, about, closed)


def soak_all(arena: Arena, options: argparse.Namespace) -> Iterator[tuple[str, Soaked]]:
    """Yield what a soak of each catalogue found; nothing but our own server runs beside the generator."""
    import polars as pl

    for catalogue in options.catalogues:
        bundle = arena.bundle(catalogue)
        calls = arena.workload.draw(pl.read_parquet(bundle / "users.parquet"))
        with Generator() as generator, arena.serve(bundle) as server:
            (contender,) = who.ours(server, calls, arena.folder, http=False, noop=False)
            rows = list(closed_loops(generator, [contender], _CALIBRATION, describe(catalogue, bundle)))
            rate = saturated(rows, who.OURS) * TAIL_SHARE_PCT / 100
            log(f"{catalogue}: {rate:.0f} calls/s for {options.soak:g} minutes")
            yield catalogue, soak(generator, contender, rate, 60.0 * options.soak)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line as each row is there, and write what was asked for."""
    options = parse(arguments)
    log(f"{_limits.hardware()}; " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    options.folder.mkdir(parents=True, exist_ok=True)
    items = options.large_items or (_QUICK_ITEMS if options.quick else Arena.large_items)
    # Absolute: the generator and the rival run in the folder that `bench` lies in.
    try:
        workload = Workload(with_history=options.histories)
    except ValueError as error:
        raise SystemExit(f"--histories: {error}") from None
    arena = Arena(options.checkpoint.absolute(), options.folder.absolute(), items, workload)
    say = log if options.json else print
    try:
        if options.soak is not None:
            return _soak(arena, options)
        rows: list[Row] = []

        def collected() -> Iterator[Row]:
            for row in measure(arena, options):
                rows.append(row)
                if options.csv:  # again after every row, so that a run cut short has what it measured
                    write_csv(options.csv, rows)
                yield row

        for line in lines(collected()):
            say(line)
            sys.stdout.flush()
    except FuserecError as error:
        raise SystemExit(str(error)) from None
    met = targets(rows)
    for target in met:
        say(str(target))
    if options.plot:
        plot(options.plot, rows)
    if options.json:
        checked = [dataclasses.asdict(target) | {"is_met": target.is_met} for target in met]
        print(json.dumps({"hardware": _limits.hardware(), "rows": rows, "targets": checked}, indent=1))
    return 0


def _soak(arena: Arena, options: argparse.Namespace) -> int:
    found = {}
    for catalogue, soaked in soak_all(arena, options):
        for line in soaked.lines():
            (log if options.json else print)(f"{catalogue}: {line}")
        found[catalogue] = dataclasses.asdict(soaked)
        if options.csv:
            write_csv(options.csv.with_stem(f"{options.csv.stem}-{catalogue}"), soaked.samples)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
