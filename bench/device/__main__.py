"""Spends a quarter of an hour on a GPU well: `bash bench/device/run.sh`, or `python -m bench.device --rehearse`.

What a step measures is in FOLDER/STEP.csv; FOLDER/device.json has all steps with the header, FOLDER/log.txt what was
printed. docs/gpu-hosts.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.device import report
from bench.device._facts import facts
from bench.device._rows import read_rows
from bench.device._steps import REHEARSAL_LIMIT_S, STEPS, TOTAL_S, Ended, carry_out, chosen
from fuserec.files import replacing_file

_NAMES = tuple(step.name for step in STEPS)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.device", description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT", "build/device"))
    parser.add_argument("--out", type=Path, default=default, help="folder of the results ($OUT, or build/device)")
    parser.add_argument("--only", nargs="+", choices=_NAMES, default=[], metavar="STEP", help="these steps alone")
    parser.add_argument(
        "--limit", nargs="+", type=_limit, default=[], metavar="STEP=SECONDS", help="another time limit of a step"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="without a device: tiny sizes, interpreted kernels, made-up limits"
    )
    parser.add_argument("--list", action="store_true", help="list the steps with their limits, and run nothing")
    return parser.parse_args(arguments)


def _limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    if name not in _NAMES or not seconds.isdecimal() or int(seconds) < 1:
        raise argparse.ArgumentTypeError(
            f"invalid limit={text!r}: must be STEP=SECONDS, STEP one of {', '.join(_NAMES)}"
        )
    return name, float(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 1 if one failed or was stopped, 2 if there is no device."""
    options = parse(arguments)
    if options.list:
        for step in STEPS:
            print(f"{step.name:<12} {step.limit_s:4.0f} s  {step.about}")
        return 0
    header = facts(rehearsal=options.rehearse)
    print("  ".join(f"{name} {value}" for name, value in header.items() if value is not None), flush=True)
    if not options.rehearse and header["capability"] is None:
        print("no CUDA device that torch can see; `--rehearse` runs without one", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    return _run(options, header)


def _run(options: argparse.Namespace, header: dict[str, Any]) -> int:
    limits = dict(options.limit)
    end = time.monotonic() + max(TOTAL_S, sum(limits.values()))
    steps: dict[str, Any] = {}
    for step in chosen(options.only):
        limit_s = REHEARSAL_LIMIT_S if options.rehearse else limits.get(step.name, step.limit_s)
        limit_s = min(limit_s, end - time.monotonic())
        print(f"\n== {step.name}: {step.about} ({limit_s:.0f} s at most)", flush=True)
        ended = carry_out(step, options.out, limit_s=limit_s, rehearse=options.rehearse, log=options.out / "log.txt")
        print(f"== {step.name} {ended.state} after {ended.seconds} s", flush=True)
        steps[step.name] = _kept(options.out, step.name, ended, limit_s)
        _write(options.out, {"header": header, "steps": steps})
    print()
    for line in report.summary(options.out):
        print(line)
    return 0 if all(step["state"] == "done" for step in steps.values()) else 1


def _kept(out: Path, name: str, ended: Ended, limit_s: float) -> dict[str, Any]:
    rows = read_rows(out / f"{name}.csv")
    return {"state": ended.state, "seconds": ended.seconds, "limit_s": round(limit_s, 1), "rows": rows}


def _write(out: Path, content: dict[str, Any]) -> None:
    with replacing_file(out / "device.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
