"""What the GPU kernels compile to: no spill, the widest loads of the table, tensor cores; no device is needed.

Compiled in processes of their own, as the kernels may be interpreted in this one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from bench import cubins
from bench.machine_code import Figures, _bytes
from bench.occupancy import occupancy
from fuserec.kernels import aot

# One of each kernel, and of `sift_kernel` the two that most searches launch.
MAIN = (
    r"^(sift\[d=128, q=(16, filters|32, plain)|(floor|prune|place)$|prepare\[bag|rescore\[d=128, bfloat16|"
    r"(keep|block_best\[q=1,).* float16)"
)


def check(archs: tuple[int, ...], match: str) -> None:
    command = [sys.executable, "-m", "bench.cubins", "--check", "--match", match, "--cc", *map(str, archs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_variants_have_names_of_their_own() -> None:
    for arch in aot.COMPUTE_CAPABILITIES:
        names = [variant.name for variant in aot.variants(arch)]
        assert len(set(names)) == len(names)


def test_the_main_kernels_on_two_architectures() -> None:
    check((80, 90), MAIN)


GOOD = Figures(100, 0, 0, 1024, 0.5, 16, True, {"IMMA": 16})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"spill_bytes": 8}, "sift.* for compute capability 80 spills 8 bytes a thread"),
        ({"spill_instructions": 1}, "spills 0 bytes"),
        ({"load_bytes": 4}, "loads the table by 4 bytes a thread, expected 16"),
        ({"mma": {}}, "has no tensor-core instruction"),
        ({"occupancy": 0.0}, "takes 1024 bytes of shared memory, more than there are"),
    ],
    ids=["none", "stack", "local_loads", "narrow", "no_mma", "too_large"],
)
def test_every_fault_is_named(changes: dict[str, object], message: str | None) -> None:
    variant = aot.variants(80)[0]
    found = cubins.faults(cubins.Row(80, replace(variant, name="sift"), replace(GOOD, **changes)))  # type: ignore[arg-type]
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


@pytest.mark.parametrize("arch", [arch for arch in aot.COMPUTE_CAPABILITIES if arch >= 80])
def test_all_integer_products_are_to_use_tensor_cores(arch: int) -> None:
    found = [variant for variant in aot.variants(arch) if "SAMPLE" in variant.constexprs]
    assert found and all(variant.mma for variant in found)


@pytest.mark.parametrize(
    ("suffixes", "width"),
    [(".E.128", 16), (".E.BYPASS.128", 16), (".E.128.SYS", 16), (".E.64", 8), (".E", 4), (".E.U8", 1), (".E.U16", 2)],
)
def test_the_width_of_a_load(suffixes: str, width: int) -> None:
    assert _bytes(suffixes) == width


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "share"),
    [
        (80, 32, 0, 4, 1.0),  # 16 blocks of 4 warps
        (80, 255, 0, 8, 8 / 64),  # 65536 / (256 * 32 * 8) is one block
        (80, 64, 40 << 10, 4, 16 / 64),  # 41 KB a block, of 164
        (80, 64, (40 << 10) + 1, 4, 12 / 64),
        (86, 64, 100 << 10, 4, 0.0),  # with what the system takes, more than there is
        (75, 32, 64 << 10, 4, 4 / 32),
    ],
)
def test_occupancy(arch: int, registers: int, shared: int, warps: int, share: float) -> None:
    assert occupancy(arch, registers=registers, shared_bytes=shared, warps=warps) == share


def test_interpreted_kernels_cannot_be_compiled() -> None:
    variant = aot.variants(80)[0]
    if hasattr(variant.kernel, "cache_key"):
        pytest.skip("the kernels are compiled in this process")
    with pytest.raises(RuntimeError, match="expected TRITON_INTERPRET to be unset"):
        aot.compile_variant(variant, 80)
