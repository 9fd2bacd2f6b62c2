"""The whole service on the GPU beside FastAPI and torch on the same GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from bench.device._rows import table
from bench.device._step_options import told

# What the served run needs beyond what such a host has; bench/device/wheels.sh brings it.
NEEDED = ("pytriton", "tritonclient", "fastapi", "uvicorn", "httptools", "orjson", "polars")


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what is missing."""
    step = told("served", "The whole service on the GPU.", arguments)
    missing = [name for name in NEEDED if find_spec(name) is None]
    step.rows.add(items=None, contender="-", state=f"not measured: {', '.join(missing) or 'nothing'} missing")
    print("\n".join(table(step.rows.rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
