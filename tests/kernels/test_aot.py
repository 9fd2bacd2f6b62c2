"""The GPU kernels compile for every architecture in use, without spilling registers; no device is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fuserec.kernels import aot

CODE = """
import dataclasses, json, sys
from fuserec.kernels import aot
cc = int(sys.argv[1])
figures = {name: aot.usage(aot.compile_cubin(variant, cc)) for name, variant in aot.variants().items()}
json.dump({name: dataclasses.asdict(usage) for name, usage in figures.items()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def figures() -> dict[int, dict[str, dict[str, int]]]:
    """Resource usage by compute capability and kernel.

    Compiled in processes of their own, as the kernels may be interpreted in this one; two at a time.
    """
    found: dict[int, dict[str, dict[str, int]]] = {}
    for pair in (aot.COMPUTE_CAPABILITIES[:2], aot.COMPUTE_CAPABILITIES[2:]):
        running = {cc: subprocess.Popen([sys.executable, "-c", CODE, str(cc)], stdout=subprocess.PIPE) for cc in pair}
        for cc, process in running.items():
            output, _ = process.communicate()
            assert process.returncode == 0, f"compiling for compute capability {cc} failed"
            found[cc] = json.loads(output)
    return found


@pytest.mark.parametrize("cc", aot.COMPUTE_CAPABILITIES)
@pytest.mark.parametrize("kernel", sorted(aot.variants()))
def test_no_kernel_spills(figures: dict[int, dict[str, dict[str, int]]], kernel: str, cc: int) -> None:
    usage = figures[cc][kernel]
    assert usage["stack_bytes"] == usage["local_bytes"] == 0, f"{kernel} for compute capability {cc} spills: {usage}"
    assert usage["registers"] <= 192, f"{kernel} for compute capability {cc} leaves no room for others: {usage}"


def test_interpreted_kernels_cannot_be_compiled() -> None:
    variant = next(iter(aot.variants().values()))
    if hasattr(variant.kernel, "cache_key"):
        pytest.skip("the kernels are compiled in this process")
    with pytest.raises(RuntimeError, match="expected TRITON_INTERPRET to be unset"):
        aot.compile_cubin(variant, 80)
