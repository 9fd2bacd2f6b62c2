"""What a search on a GPU would take by its datasheet: bytes and time of both passes, beside the unfused way.

    python -m bench.roofline [--csv FILE] [--plot FILE.png]

A prediction, not a measurement: each pass takes as long as the slowest of its memory traffic, its tensor-core products
and its float arithmetic, and launches take nothing.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.traffic import Traffic, traffic
from fuserec.kernels.search.gpu_config import Shape, choose_config

BATCHES, ROWS, DIMS, KS = (1, 8, 64, 1024), (1_000_000, 10_000_000), (64, 128, 256), (10, 100, 1000)
# Float instructions for a bound: convert, three products and sums, compare, and the predicated atomic and store.
_EPILOGUE_INSTRUCTIONS = 12
COLUMNS = (
    "device", "rows", "dim", "k", "batch", "moved_mb", "floor_mb", "ratio", "pass_1_us", "pass_2_us", "bound_by",
    "unfused_mb", "unfused_us", "speedup",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """Peak rates of one device, dense; bytes and operations a second.

    Attributes:
        name: What it is called.
        arch: Compute capability.
        memory: Bytes a second.
        int8: Tensor-core operations a second; a multiply-add is two.
        float32: Operations a second of the ordinary cores; a multiply-add is two.
        cache_mb: L2 cache.
        source: Where the figures are from.
    """

    name: str
    arch: int
    memory: float
    int8: float
    float32: float
    cache_mb: int
    source: str


DEVICES = (
    Device("H100 SXM", 90, 3350e9, 1979e12, 67e12, 50, "NVIDIA H100 datasheet; architecture whitepaper (L2)"),
    Device("H200 SXM", 90, 4800e9, 1979e12, 67e12, 50, "NVIDIA H200 datasheet; the processor is the H100's"),
    Device("A100 80GB SXM", 80, 2039e9, 624e12, 19.5e12, 40, "NVIDIA A100 datasheet; architecture whitepaper (L2)"),
    Device("L4", 89, 300e9, 242e12, 30.3e12, 48, "NVIDIA L4 datasheet (half of the sparse rate); Ada whitepaper (L2)"),
    Device("RTX 4090", 89, 1008e9, 660.6e12, 82.6e12, 72, "NVIDIA Ada GPU architecture whitepaper"),
)


@dataclass(frozen=True)
class Prediction:
    """Bytes and seconds of one search on one device."""

    device: Device
    shape: Shape
    traffic: Traffic
    pass_1_s: float
    pass_2_s: float
    bound_by: str
    unfused_s: float

    def cells(self) -> tuple[str, ...]:
        """Return the prediction as `COLUMNS` names it."""
        shape, bytes_ = self.shape, self.traffic
        moved = (bytes_.pass_1 + bytes_.pass_2) / 1e6
        sizes = (str(shape.rows), str(shape.dim), str(shape.k), str(shape.batch))
        fused = (f"{moved:.1f}", f"{bytes_.floor / 1e6:.1f}", f"{bytes_.ratio:.3f}")
        times = (f"{self.pass_1_s * 1e6:.1f}", f"{self.pass_2_s * 1e6:.1f}", self.bound_by)
        speedup = self.unfused_s / (self.pass_1_s + self.pass_2_s)
        unfused = (f"{bytes_.unfused / 1e6:.1f}", f"{self.unfused_s * 1e6:.1f}", f"{speedup:.1f}")
        return (self.device.name, *sizes, *fused, *times, *unfused)


def predict(device: Device, shape: Shape) -> Prediction:
    """Return what `shape` takes on `device` at its peak rates."""
    moved = traffic(shape, device.arch)
    config = choose_config(shape, "int8", device.arch)
    columns = -(-shape.batch // config.block_q) * config.block_q  # the tile of queries is full, used or not
    products = 2 * 2.0 * columns * shape.rows * shape.dim  # two halves of the query codes
    costs = {
        "memory": moved.pass_1 / device.memory,
        "int8": products / device.int8,
        "bounds": columns * shape.rows * _EPILOGUE_INSTRUCTIONS / (device.float32 / 2),
    }
    bound_by = max(costs, key=lambda name: costs[name])
    product = 2.0 * shape.batch * shape.rows * shape.dim / device.float32
    written = shape.batch * shape.rows * 4
    table = shape.rows * shape.dim * 4
    # The product overlaps its own traffic; filter and top-k are launches after it.
    unfused = max(product, (table + written) / device.memory) + (moved.unfused - table - written) / device.memory
    return Prediction(device, shape, moved, costs[bound_by], moved.pass_2 / device.memory, bound_by, unfused)


def predictions() -> Iterator[Prediction]:
    """Return one for each device and shape of the grid."""
    for device, rows, dim, k, batch in itertools.product(DEVICES, ROWS, DIMS, KS, BATCHES):
        yield predict(device, Shape(batch, rows, dim, k))


def plot(path: Path) -> None:
    """Draw time against batch for 1M x 128 at k = 100, the fused search beside the unfused one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    batches = [2**power for power in range(11)]
    for at, device in enumerate(DEVICES):
        found = [predict(device, Shape(batch, 1_000_000, 128, 100)) for batch in batches]
        fused = [1e6 * (one.pass_1_s + one.pass_2_s) for one in found]
        axes.plot(batches, fused, color=f"C{at}", label=device.name)
        axes.plot(batches, [1e6 * one.unfused_s for one in found], color=f"C{at}", linestyle="dashed")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="predicted time, microseconds")
    axes.set_title("1M x 128, k = 100: fused (solid) and unfused (dashed); from datasheets, not measured")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description="Predicted time from datasheets.")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    parser.add_argument("--plot", type=Path, help="draw time against batch")
    options = parser.parse_args(arguments)
    table = [one.cells() for one in predictions()]
    for cells in (COLUMNS, *table):
        print(" | ".join(cells))
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *table])
    if options.plot:
        plot(options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
