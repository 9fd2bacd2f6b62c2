"""Measures one card with torch: copies, matrix products, launches; each returns the rate and its timing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.device._timing import Timing
from bench.device.clock import captured, device_us, host_us, interleaved

Measured = Callable[[], tuple[float, Timing]]


def works() -> dict[str, Measured]:
    """Return what is measured, by name: GB/s, TOPS (a multiply-add is two) or microseconds."""
    return {
        "copy": _copy,
        "read": _read,
        **{kind: _product(kind) for kind in ("int8", "fp16", "bf16", "fp32", "fp64")},
        "to device": lambda: _transfer(to_device=True),
        "from device": lambda: _transfer(to_device=False),
        "launch": _launch,
        "replay": _replay,
        "round trip": _round_trip,
    }


def _time(work: Callable[[], object], seconds: float = 0.4) -> Timing:
    return interleaved({"": work}, lambda it, repeats: device_us(it, "cuda", repeats), seconds=seconds)[""]


def _time_host(work: Callable[[], object]) -> Timing:
    return interleaved({"": work}, host_us, seconds=0.2)[""]


def _copy() -> tuple[float, Timing]:
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    timing = _time(lambda: target.copy_(source))
    return 2 * source.nbytes / timing.median_us / 1e3, timing


def _read() -> tuple[float, Timing]:
    source = torch.randn(1 << 30, device="cuda")
    timing = _time(lambda: source.sum())
    return source.nbytes / timing.median_us / 1e3, timing


def _product(kind: str) -> Measured:
    def work() -> tuple[float, Timing]:
        size = 4096 if kind == "fp64" else 8192
        if kind == "int8":
            left, right = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device="cuda") for _ in range(2))
            timing = _time(lambda: torch._int_mm(left, right.T))
        else:
            dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[kind]
            a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
            timing = _time(lambda: a @ b.T)
        return 2.0 * size**3 / timing.median_us / 1e6, timing

    return work


def _transfer(*, to_device: bool) -> tuple[float, Timing]:
    host = torch.randn(1 << 26).pin_memory()
    device = torch.empty_like(host, device="cuda")
    target, source = (device, host) if to_device else (host, device)
    timing = _time(lambda: target.copy_(source, non_blocking=True))
    return host.nbytes / timing.median_us / 1e3, timing


def _launch() -> tuple[float, Timing]:
    one = torch.zeros(1, device="cuda")
    timing = _time(lambda: one.add_(1))
    return timing.median_us, timing


def _replay() -> tuple[float, Timing]:
    one = torch.zeros(1, device="cuda")
    replay = captured(lambda: one.add_(1), "cuda")

    def work() -> None:
        replay()
        torch.cuda.synchronize()

    timing = _time_host(work)
    return timing.median_us, timing


def _round_trip() -> tuple[float, Timing]:
    there, back = (torch.zeros(1024).pin_memory() for _ in range(2))
    device = torch.zeros(1024, device="cuda")

    def work() -> None:
        device.copy_(there, non_blocking=True)
        back.copy_(device, non_blocking=True)
        torch.cuda.synchronize()

    timing = _time_host(work)
    return timing.median_us, timing
