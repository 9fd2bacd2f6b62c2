"""Compiles the GPU kernels ahead of time, for devices that are not here, and reads what the machine code needs.

A launch tells the compiler which pointers and sizes are multiples of 16; so do the sources below, or the loads would
come out narrower than those of a real launch.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fuserec.kernels.search import _kernel
from fuserec.kernels.search.config import REOPEN_WARPS, choose_gpu_config

COMPUTE_CAPABILITIES = (80, 89, 90, 100)
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TYPES = {
    "best_ptr": "*i64",
    "magnitudes_ptr": "*fp64",
    "keys_ptr": "*i64",
    "picked_ptr": "*i64",
    "items_ptr": "*fp32",
    "table_ptr": "*fp32",
    "ids_ptr": "*i64",
    "bags_ptr": "*i64",
    "weights_ptr": "*fp32",
    "out_offsets_ptr": "*i64",
    "out_rows_ptr": "*i64",
    "allow_ptr": "*u8",
}
_MULTIPLES_OF_16 = ("n_rows", "dim", "stride_allow")


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time arguments."""

    kernel: Any
    constexprs: Mapping[str, object]
    num_warps: int


@dataclass(frozen=True)
class Usage:
    """What one cubin takes: registers a thread; stack and local memory, which are spills; static shared memory."""

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int


def variants(dim: int = 128) -> dict[str, Variant]:
    """Return, by name, what a search over `dim` columns launches: every kind of query, all filters, normalised."""
    found: dict[str, Variant] = {}
    for kind in ("dense", "lookup", "bag"):
        flags = {"KIND": kind, "WEIGHTED": kind == "bag", "NORMALIZE": True, "EXCLUDE": True, "ALLOW": True}
        for batch in (1, 16):
            config = choose_gpu_config(batch, dim)
            reopen = flags | {"BLOCK_BEST": config.block_best, "BLOCK_D": config.block_d}
            best = reopen | {"BLOCK_Q": config.block_q, "BLOCK_N": config.block_n}
            name = f"block_best[{kind}, block_q={config.block_q}]"
            found[name] = Variant(_kernel.block_best_kernel, best, config.num_warps)
            found[f"reopen[{kind}, block_d={config.block_d}]"] = Variant(_kernel.reopen_kernel, reopen, REOPEN_WARPS)
    return found


def compile_cubin(variant: Variant, compute_capability: int) -> bytes:
    """Return the machine code of `variant`; Triton's own cache makes a second call cheap.

    Raises:
        RuntimeError: The kernels are interpreted in this process, so there is nothing to compile.
    """
    if not isinstance(variant.kernel, JITFunction):
        raise RuntimeError("got interpreted kernels, expected TRITON_INTERPRET to be unset when triton was imported")
    names = variant.kernel.arg_names
    signature = {
        name: "constexpr" if name in variant.constexprs else _TYPES.get(name, "i32")  # what is no pointer is a size
        for name in names
    }
    divisible = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in variant.constexprs.items()},
        attrs={(at,): divisible for at, name in enumerate(names) if name in _TYPES or name in _MULTIPLES_OF_16},
    )
    target = GPUTarget("cuda", compute_capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": variant.num_warps})
    return bytes(compiled.asm["cubin"])


def usage(cubin: bytes) -> Usage:
    """Return what `cubin` takes, as the `cuobjdump` that comes with Triton reads it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    return Usage(figures["REG"], figures["STACK"], figures["LOCAL"], figures["SHARED"])
