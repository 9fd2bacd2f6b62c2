"""The whole service on the GPU beside FastAPI and torch on the same one: `bench.serving.on_device` does the measuring.

What such a host lacks comes as wheels (`wheels.sh`) and is installed into a folder that only these processes see: the
server's python backend reads the arrays of numpy 1, the other steps run under the host's own numpy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.device._facts import ROOT
from bench.device._rows import read_rows, table
from bench.device._step_options import Told, told

LOADS: Final = ROOT / "bench" / "device" / "wheels"
PREPARED: Final = LOADS / "served"  # the checkpoint and its repository, by `bench.serving.on_device prepare`
# What the served run imports, of which such a host has some.
NEEDED: Final = (
    "pytriton",
    "tritonclient",
    "fastapi",
    "uvicorn",
    "httptools",
    "orjson",
    "polars",
    "uvloop",
    "onnxruntime",
)
ITEMS: Final = (1_000_000, 10_000_000)
DIM: Final = 128


def environment(site: Path) -> dict[str, str]:
    """Return what the served processes see: the wheels before the host's own packages."""
    path = [str(site), str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return found | {"PYTHONPATH": os.pathsep.join(part for part in path if part)}


def install(loads: Path, site: Path) -> int:
    """Install the wheels of a folder into `site`, without a registry; return how many there were."""
    wheels = sorted(map(str, loads.glob("*/*.whl")))
    if wheels:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *wheels]
        subprocess.run(command, check=True)
    return len(wheels)


def missing(site: Path) -> list[str]:
    """Return what the served processes could not import, and why numpy would not do."""
    code = (
        "import sys, numpy, importlib.util as u;"
        f"print(*[n for n in {NEEDED!r} if u.find_spec(n) is None]);"
        "print(*(['numpy<2'] if int(numpy.__version__.split('.')[0]) >= 2 else []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(site), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def write_index(items: int, path: Path) -> None:
    """Write the index of so many items, made on the device."""
    import torch

    from bench.device.tables import normal_rows, packed_index

    rows = normal_rows(items, DIM, torch.float32, "cuda")
    packed_index(rows / rows.norm(dim=1, keepdim=True)).save(path)


def command(step: Told, folder: Path, indexes: Sequence[Path], seconds: float) -> list[str]:
    """Return what measures: our server and the rival in turns, a short block at each number of callers."""
    done = [sys.executable, "-m", "bench.serving.on_device", "measure", "--folder", str(folder)]
    done += ["--csv", str(step.out / "served.csv"), "--rounds", "1", "--seconds", f"{max(1.0, seconds / 40):.1f}"]
    if step.rehearse:
        return [*done, "--rehearse"]
    return [*done, "--workers", "1", "--concurrency", "1", "64", "256", "--index", *map(str, indexes)]


def measure(step: Told, scratch: Path) -> Iterator[str]:
    """Measure; yield why not, where something is missing."""
    if find_spec("bench.serving.on_device") is None:
        yield "bench.serving.on_device is not in this checkout"
        return
    site = scratch / "site"
    installed = install(LOADS, site)
    print(f"{installed} wheels installed into {site}", flush=True)
    if lacking := missing(site):
        yield f"missing: {', '.join(lacking)}; bench/device/wheels.sh collects what travels"
        return
    if not (PREPARED / "checkpoint").exists():
        yield f"missing: {PREPARED.relative_to(ROOT)}; bench/device/wheels.sh prepares it"
        return
    folder = scratch / "served"
    if not folder.exists():
        subprocess.run(["cp", "-r", str(PREPARED), str(folder)], check=True)
    indexes = [] if step.rehearse else [scratch / f"{items}.safetensors" for items in ITEMS]
    for items, path in zip(ITEMS, indexes, strict=False):
        begin = time.monotonic()
        write_index(items, path)
        print(f"{items:,} items: the index was made in {time.monotonic() - begin:.1f} s", flush=True)
    done = subprocess.run(
        command(step, folder, indexes, step.left_s), cwd=ROOT, env=environment(site), timeout=max(1.0, step.left_s)
    )
    if done.returncode:
        yield f"bench.serving.on_device ended with status {done.returncode}; log.txt says why"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table; what cannot be measured here is said in it."""
    step = told("served", "The whole service on the GPU.", arguments)
    with tempfile.TemporaryDirectory(prefix="fuserec-served-") as scratch:
        try:
            why = list(measure(step, Path(scratch)))
        except subprocess.TimeoutExpired:
            why = ["stopped by the time limit"]
    rows = read_rows(step.out / "served.csv")
    if why:
        print(f"served: {why[0]}")
        step.rows.rows = [*rows, {"contender": "-", "state": f"not measured: {why[0]}"}]
        step.rows.write()
        rows = step.rows.rows
    print("\n".join(table(rows, ("items", "contender", "concurrency", "qps", "p50_ms", "p99_ms", "batch", "errors",
                                 "saturated_qps", "state"))))  # fmt: skip
    # A host that lacks the wheels has not failed; a server that does not answer has.
    failed = any(text.startswith("bench.serving.on_device ended") for text in why)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
