"""Whether the answers are right on this device: behaviour suite, a million searches against float64, sanitizers.

The parts run beside each other, as nothing is timed here: the suite in workers of pytest, the plans of the differential
run in processes of their own (each compiles what its plan needs), the sanitizers over a few small searches.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.device import differential
from bench.device._facts import ROOT
from bench.device._rows import table
from bench.device._step_options import Told, told
from bench.device.cases import Plan, Question, full_plans, rehearsal_plans
from bench.device.ways import Backend, searcher
from fuserec.kernels import ItemIndex, TopK

_WORKERS: Final = 8
_SUITE_WORKERS: Final = 6
_LAST_S: Final = 4.0  # what a worker needs to end
TOOLS: Final = ("memcheck", "racecheck")
_POISON_BYTES: Final = 1 << 29


def poison() -> None:
    """Fill memory that torch will hand out again with NaN and -1, so that reading what nobody wrote shows."""
    import torch

    torch.full((_POISON_BYTES,), 0xFF, dtype=torch.uint8, device="cuda")


def run_plan(plan: Plan, backend: Backend, seconds: float) -> tuple[differential.Count, float]:
    """Carry out one plan in this process; return what it came to, and the seconds it took."""
    start = time.monotonic()
    device = "cuda" if backend == "cuda" else "cpu"
    answer = searcher(plan.way, backend)

    def on_poisoned_memory(index: ItemIndex, question: Question) -> TopK:
        poison()
        return answer(index, question)

    asked = on_poisoned_memory if device == "cuda" else answer
    count = differential.run(plan, asked, device, until=start + seconds)
    return count, time.monotonic() - start


@dataclass(frozen=True)
class Part:
    """What one of the parts found: a row, and whether it is sound."""

    check: str
    part: str
    cells: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Return it as the results have it."""
        return {"check": self.check, "part": self.part, **self.cells}


def _differential(step: Told, backend: Backend) -> Iterator[Part]:
    plans = rehearsal_plans() if step.rehearse else full_plans()
    seconds = max(1.0, step.left_s - _LAST_S)
    if step.rehearse:
        for plan in plans:
            if plan.way in ("device", "rows on host") and backend == "reference":
                yield Part("differential", plan.name, {"sound": None, "what": "Triton's interpreter does not run here"})
                continue
            yield _part(plan, *run_plan(plan, backend if plan.interpreted else "reference", seconds))
        return
    # The longest first, so that no worker begins one when the others are done.
    plans.sort(key=lambda plan: -plan.queries * plan.rows)
    with ProcessPoolExecutor(_WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        # A plan that begins later has less time: each is told when the step ends, not how long it may take.
        found: dict[Future[tuple[differential.Count, float]], Plan] = {
            pool.submit(_until, plan, backend, time.time() + seconds): plan for plan in plans
        }
        for future in as_completed(found):
            plan = found[future]
            error = future.exception()
            if error is not None:
                cells = {"queries": 0, "sound": False, "what": f"{type(error).__name__}: {error}"[:300]}
                yield Part("differential", plan.name, cells)
            else:
                yield _part(plan, *future.result())


def _until(plan: Plan, backend: Backend, moment: float) -> tuple[differential.Count, float]:
    return run_plan(plan, backend, moment - time.time())


def _part(plan: Plan, count: differential.Count, seconds: float) -> Part:
    cells = count.cells()
    if count.queries < plan.queries and not count.errors:
        cells["what"] = f"{plan.queries:,} wanted, stopped by the time limit"
    return Part("differential", plan.name, cells | {"seconds": round(seconds, 1)})


def suite_command(step: Told, report: Path) -> list[str]:
    """Return what runs the behaviour suite: on the device, or a few tests of it in a rehearsal."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if step.rehearse:
        return [*command, "tests/kernels/test_keys.py"]
    workers = ["--numprocesses", str(_SUITE_WORKERS), "--maxfail", "20"]
    return [*command, "tests/kernels", "-k", "cuda or device", *workers]


def _read_suite(report: Path, ended: subprocess.Popen[bytes]) -> Part:
    """Return what pytest reported; a suite without a passed test is not sound."""
    from xml.etree import ElementTree

    if not report.exists():
        return Part("suite", "pytest", {"sound": False, "what": f"no report; status {ended.returncode}"})
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, wrong, skipped = (
        sum(int(one.get(name, 0)) for one in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    failed = [case.get("name") or "" for case in suites[0].iter("testcase") if case.find("failure") is not None]
    passed = total - wrong - skipped
    cells = {"searches": total, "passed": passed, "skipped": skipped, "sound": wrong == 0 and passed > 0}
    return Part("suite", "pytest", cells | {"what": ("failed: " + ", ".join(failed))[:300] if failed else None})


def _sanitizer(tool: str) -> list[str] | None:
    found = shutil.which("compute-sanitizer")
    if found is None:
        return None
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    return [found, *options, sys.executable, "-m", "bench.device.sanitized"]


_NOT_HERE = re.compile(r"not supported|999|Unable|LibraryNotLoaded", re.IGNORECASE)


def _read_sanitizer(tool: str, process: subprocess.Popen[bytes] | None, log: Path, left_s: float) -> Part:
    """Return what a sanitizer found; one that cannot run here says so, and is no failure of the search."""
    if process is None:
        return Part("sanitizer", tool, {"sound": None, "what": "compute-sanitizer is not installed here"})
    try:
        process.wait(max(1.0, left_s))
    except subprocess.TimeoutExpired:
        process.kill()
        return Part("sanitizer", tool, {"sound": None, "what": "stopped by the time limit"})
    text = log.read_text(errors="replace")
    errors = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    if process.returncode == 0 and errors:
        return Part("sanitizer", tool, {"sound": True, "what": "0 errors"})
    if not errors and _NOT_HERE.search(text):
        return Part(
            "sanitizer", tool, {"sound": None, "what": f"cannot run here: {text.strip().splitlines()[-1][:200]}"}
        )
    lines = [line for line in text.splitlines() if "=========" in line and len(line) > 12]
    return Part("sanitizer", tool, {"sound": False, "what": " ".join(lines[:4])[:300] or text[-300:]})


def check(step: Told, backend: Backend) -> Iterator[Part]:
    """Yield what each part found, as it ends."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        running: dict[str, tuple[subprocess.Popen[bytes] | None, Path]] = {}
        for tool in TOOLS:
            running[tool] = _start(None if step.rehearse else _sanitizer(tool), folder / f"{tool}.log")
        report = folder / "suite.xml"
        suite, _ = _start(suite_command(step, report), folder / "suite.log")
        assert suite is not None
        try:
            yield from _differential(step, backend)
            try:
                suite.wait(max(1.0, step.left_s))
            except subprocess.TimeoutExpired:
                suite.terminate()
                suite.wait()
            yield _read_suite(report, suite)
            for tool, (process, log) in running.items():
                yield _read_sanitizer(tool, process, log, step.left_s)
        finally:
            for process in (suite, *(process for process, _ in running.values())):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()


def _start(command: list[str] | None, log: Path) -> tuple[subprocess.Popen[bytes] | None, Path]:
    if command is None:
        return None, log
    # The tests interpret the kernels themselves where there is no device.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT), log


def total(parts: Sequence[Part]) -> Part:
    """Return all differential parts in one row: what is published."""
    found = [part.cells for part in parts if part.check == "differential"]
    queries = sum(cells.get("queries", 0) for cells in found)

    def added(name: str) -> int:
        return sum(cells.get(name, 0) for cells in found)

    certified = queries - added("repairs")
    cells = {name: added(name) for name in ("searches", "wrong", "excluded_back", "repeated", "changed", "repairs")}
    cells |= {
        "certified_pct": round(100 * certified / max(queries, 1), 3),
        "sound": all(c["sound"] is not False for c in found),
    }
    # Named otherwise than `queries`, which a reader may add up.
    return Part("total", f"{queries:,} queries", cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything; 1 if something was wrong."""
    step = told("correctness", "Whether the answers are right.", arguments)
    backend: Backend = "cuda"
    if step.rehearse:
        from bench.device.subject import rehearsal_backend

        backend = rehearsal_backend()
        print(f"rehearsal: backend {backend!r}")
    parts = []
    for part in check(step, backend):
        parts.append(part)
        step.rows.add(**part.row())
        print(f"{part.check} {part.part}: {'sound' if part.cells['sound'] else part.cells.get('what')}", flush=True)
    parts.append(total(parts))
    step.rows.add(**parts[-1].row())
    columns = ("check", "part", "queries", "searches", "wrong", "excluded_back", "repeated", "changed", "certified_pct",
               "repairs", "rescored_rows", "passed", "skipped", "seconds", "sound", "what")  # fmt: skip
    print("\n".join(table(step.rows.rows, columns)))
    return 0 if all(part.cells["sound"] is not False for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
