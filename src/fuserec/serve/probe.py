"""Look at the first CUDA device, in a process of its own: whoever begins CUDA can no longer fork, and holds memory.

    python -m fuserec.serve.probe      prints a `Gpu` as JSON, or says on stderr why there is none

It is asked by the launcher, which starts processes, so that only those that compute there begin CUDA.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device.

    Attributes:
        name: As its maker calls it.
        target: Compute capability as targets of an export have it, `sm90`.
        free_bytes: Memory that nobody holds.
        total_bytes: All of its memory.
    """

    name: str
    target: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Survey:
    """The device that can be searched on, or why there is none.

    Attributes:
        gpu: None where there is none.
        missing: What is not there; empty with a device.
    """

    gpu: Gpu | None
    missing: str = ""


def device_target() -> str | None:
    """Return the target name (`sm89`) of CUDA device 0, None where there is none; asks the driver, needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver API.
    for value, attribute in ((major, 75), (minor, 76)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
    return f"sm{major.value}{minor.value}"


def survey() -> Survey:
    """Look from outside, in a process that ends; without a driver none is started."""
    if device_target() is None:
        return Survey(None, "the CUDA driver (libcuda.so.1) is not there or sees no device")
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Survey(None, f"the device did not answer within {_TIMEOUT_S:.0f} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the probe ended with exit status {done.returncode}"]
        return Survey(None, lines[-1])
    return Survey(Gpu(**json.loads(done.stdout.splitlines()[-1])))


def look() -> Survey:
    """Look in this process, which begins CUDA by that."""
    if device_target() is None:
        return Survey(None, "the CUDA driver (libcuda.so.1) is not there or sees no device")
    for package in ("torch", "triton"):
        try:
            __import__(package)
        except ImportError as error:
            return Survey(None, f"{package} cannot be imported ({error}); pip install 'fuserec[gpu]'")
    import torch

    if not torch.cuda.is_available():
        return Survey(None, f"torch {torch.__version__} sees no CUDA device; it may be built without CUDA")
    try:
        free, total = torch.cuda.mem_get_info(0)
        major, minor = torch.cuda.get_device_capability(0)
    except RuntimeError as error:
        return Survey(None, f"the device does not answer: {str(error).splitlines()[0]}")
    return Survey(Gpu(torch.cuda.get_device_name(0), f"sm{major}{minor}", free, total))


def main() -> int:
    """Print what there is."""
    found = look()
    if found.gpu is None:
        sys.stderr.write(f"{found.missing}\n")
        return 1
    sys.stdout.write(json.dumps(dataclasses.asdict(found.gpu)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
