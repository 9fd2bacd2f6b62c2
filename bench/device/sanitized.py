"""A few small searches of every kind: `compute-sanitizer python -m bench.device.sanitized` watches them."""

from __future__ import annotations

import sys

from bench.device import differential
from bench.device.cases import Plan
from bench.device.ways import searcher

PLANS = (
    Plan(3_001, 64, filters="exclude", queries=20),
    Plan(3_001, 128, "bag", "both", "cosine", queries=20),
    Plan(1_501, 100, "lookup", codes="none", dtype="float16", queries=20),
    Plan(601, 768, queries=10),
    Plan(1_501, 64, filters="exclude", way="device", queries=20),
    Plan(1_501, 64, filters="exclude", way="rows on host", queries=20),
)


def main() -> int:
    """Search, and hold the answers to float64 too; 1 if one is wrong."""
    counts = [differential.run(plan, searcher(plan.way, "cuda"), "cpu") for plan in PLANS]
    for plan, count in zip(PLANS, counts, strict=True):
        print(plan.name, count.cells())
    return 0 if all(count.sound for count in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
