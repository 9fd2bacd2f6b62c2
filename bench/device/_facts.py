"""The header of a run: which card, which versions, which commit; a figure without them says nothing."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import _limits

ROOT = Path(__file__).resolve().parents[2]
NO_DEVICE = "none"
_PACKAGES = ("torch", "triton", "numpy", "numba", "onnxruntime")


def facts(*, rehearsal: bool) -> dict[str, Any]:
    """Return what a reader has to know about where a run ran."""
    found: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    found["rehearsal"] = rehearsal
    found |= {"commit": commit(), "card": NO_DEVICE, "capability": None, "driver": None}
    if not rehearsal:
        found |= _card()
    found["python"] = platform.python_version()
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["host"] = _limits.hardware()
    return found


def commit() -> str:
    """Return the commit, with `+` where files differ from it; a host that has the files alone is told by `COMMIT`."""
    told = ROOT / "bench" / "device" / "COMMIT"
    git = ["git", "-C", str(ROOT)]
    head = _output([*git, "rev-parse", "--short=12", "HEAD"])
    if head is None:
        return told.read_text().strip() if told.exists() else "unknown"
    return head + ("+" if _output([*git, "status", "--porcelain", "--untracked-files=no"]) else "")


def _card() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    driver = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "cache_mb": round(properties.L2_cache_size / 2**20, 1),
    }


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
