"""The behaviour suite of the search over one backend, without a test runner: for a host that has a GPU and little else.

    python -m bench.behaviour [--backend cuda] [--match REGEX]

Runs every function of `tests/kernels/test_search.py` that takes a backend, with each set of its parameters. The last
line counts what held and what did not; the exit status is 1 where something did not.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_TESTS = Path(__file__).resolve().parents[1] / "tests" / "kernels"
_PACKAGE = "kernels_under_test"  # `kernels` itself is the name of a folder at the root


@dataclass(frozen=True)
class Case:
    """One behaviour with one set of parameters."""

    name: str
    check: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        name: That of the case.
        seconds: How long it took.
        error: The stack trace where it did not hold; empty where it did.
    """

    name: str
    seconds: float
    error: str


def cases(backend: str, match: str = "") -> Iterator[Case]:
    """Return the cases of the suite whose names match.

    Args:
        backend: As in `ItemIndex.search`.
        match: A regular expression.

    Raises:
        FileNotFoundError: The tests are not beside `bench`.
    """
    for name, function in vars(_suite()).items():
        if not name.startswith("test_") or "backend" not in inspect.signature(function).parameters:
            continue
        for label, given in _parameters(function):
            case = f"{name}[{label}]" if label else name
            if re.search(match, case):
                yield Case(case, _bound(function, {"backend": backend, **given}))


def run(backend: str, match: str = "") -> Iterator[Outcome]:
    """Run the cases, one after another."""
    for case in cases(backend, match):
        start, error = time.perf_counter(), ""
        try:
            case.check()
        except Exception:
            error = traceback.format_exc()
        yield Outcome(case.name, time.perf_counter() - start, error)


def _bound(function: Callable[..., object], given: dict[str, Any]) -> Callable[[], object]:
    return lambda: function(**given)


def _suite() -> ModuleType:
    """Import the suite as part of a package of that folder, as it imports its neighbours.

    Raises:
        FileNotFoundError: The tests are not beside `bench`.
    """
    if not _TESTS.is_dir():
        raise FileNotFoundError(f"{_TESTS}: the behaviour suite is part of the source tree, and not there")
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(_TESTS)]
    sys.modules.setdefault(_PACKAGE, package)
    return importlib.import_module(f"{_PACKAGE}.test_search")


def _parameters(function: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each set of parameters that the marks of a test name, with a label."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    axes = []
    for mark in marks:
        names = [name.strip() for name in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
        rows = [value if len(names) > 1 else (value,) for value in mark.args[1]]
        axes.append([dict(zip(names, row, strict=True)) for row in rows])
    for choice in itertools.product(*axes):
        given = {name: value for one in choice for name, value in one.items()}
        yield "-".join(str(value) for value in given.values()), given


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what did not hold, and the counts."""
    parser = argparse.ArgumentParser(prog="python -m bench.behaviour", description="The behaviour suite on a backend.")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu", "interpret", "reference"))
    parser.add_argument("--match", default="", help="regular expression that names of cases match")
    options = parser.parse_args(arguments)
    outcomes = []
    for outcome in run(options.backend, options.match):
        outcomes.append(outcome)
        if outcome.error:
            print(f"{outcome.name}\n{outcome.error}", file=sys.stderr, flush=True)
    failed = sum(bool(outcome.error) for outcome in outcomes)
    print(f"{options.backend}: {len(outcomes) - failed} held, {failed} did not", flush=True)
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
