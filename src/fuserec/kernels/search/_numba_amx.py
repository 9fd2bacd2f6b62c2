"""Integer scores of 32 queries by 32 rows with AMX: registers of 16 by 64 bytes, and their products (TDPBSUD).

A tile register holds 16 quads of the codes of 16 rows just as `packed.PackedCodes` lays them out. It must be loaded
from whole cache lines: from addresses that split them, a load took 24 ns in place of 5 (Xeon, 4th generation).

Registers 0 to 3 hold sums; 4 and 5 16 quads of the weights and the codes; 6 and 7 the quads that are left, if any. One
register for each factor is enough: reloading them was no slower than keeping four.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types

from fuserec.kernels._arrays import Array
from fuserec.kernels.packed import GROUP, QUAD
from fuserec.kernels.search._numba_emit import I8, I64, Emitter, intrinsic
from fuserec.kernels.search._numba_jit import jit

AMX_QUERIES: Final = 32
_HALF: Final = AMX_QUERIES // 2
_QUADS: Final = 16  # of one register
_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18
_CONFIG_BYTES: Final = 64


def is_permitted() -> bool:
    """Ask the kernel for the tile registers, which no process has from the start, and return its answer."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def _call(out: Emitter, name: str, *arguments: Any) -> None:
    out.call(f"llvm.x86.{name}", ir.VoidType(), list(arguments))


def _register(number: int) -> Any:
    return ir.Constant(I8, number)


@intrinsic
def _configure(_: Any, config: Any) -> Any:
    """Set the shapes of the registers of this thread."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        _call(Emitter(builder), "ldtilecfg", builder.inttoptr(arguments[0], I8.as_pointer()))
        return ir.Constant(I64, 0)

    return types.int64(config), emit


@intrinsic
def release_registers(_: Any) -> Any:
    """Give the registers of this thread back, which spares the kernel saving them."""

    def emit(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        _call(Emitter(builder), "tilerelease")
        return ir.Constant(I64, 0)

    return types.int64(), emit


@jit()
def configure_registers(quads: int, config: Array) -> None:
    """Shape the registers for rows of `quads` quads; `config` is 64 bytes of scratch."""
    for at in range(_CONFIG_BYTES):
        config[at] = 0
    config[0] = 1  # the palette of eight registers
    left = quads % _QUADS
    for register in range(8):
        rows, row_bytes = np.uint8(16), np.uint8(GROUP * QUAD)
        if register >= 6 and left == 0:
            rows, row_bytes = np.uint8(0), np.uint8(0)
        elif register == 6:
            row_bytes = np.uint8(left * QUAD)
        elif register == 7:
            rows = np.uint8(left)
        config[16 + 2 * register] = row_bytes
        config[48 + register] = rows
    _configure(np.int64(config.ctypes.data))


@intrinsic
def amx_sums(_: Any, codes: Any, weights: Any, biases: Any, quads: Any, sums: Any) -> Any:
    """The sums of 32 queries by 32 rows; see `_numba_tile.py`. The registers are configured."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        codes, weights, biases, quads, sums = arguments
        out = Emitter(builder)
        line = out.constant(GROUP * QUAD)
        group_bytes, query_bytes = builder.mul(quads, line), out.query_bytes(quads, 1)

        def load(register: int, base: Any, offset: Any, stride: Any) -> None:
            address = builder.inttoptr(builder.add(base, offset), I8.as_pointer())
            _call(out, "tileloadd64", _register(register), address, stride)

        def multiply(weight: int, code: int, quad: Any) -> None:
            """Add the products of 16 quads, or those left, to the four registers of sums."""

            def load_weights(half: int) -> None:
                skipped = builder.mul(query_bytes, out.constant(_HALF * half))
                load(weight, weights, builder.add(builder.mul(quad, out.constant(QUAD)), skipped), query_bytes)

            def load_codes(group: int) -> None:
                skipped = builder.mul(group_bytes, out.constant(group))
                load(code, codes, builder.add(builder.mul(quad, line), skipped), line)

            def add(half: int, group: int) -> None:
                _call(out, "tdpbsud", _register(2 * half + group), _register(weight), _register(code))

            load_codes(0)
            load_weights(0)
            add(0, 0)
            load_weights(1)
            add(1, 0)
            load_codes(1)
            add(1, 1)
            load_weights(0)
            add(0, 1)

        for half in range(2):
            for group in range(2):
                load(2 * half + group, biases, out.constant(_HALF * half * 4 * GROUP), line)
        whole = builder.and_(quads, out.constant(-_QUADS))
        with out.loop(builder.sdiv(whole, out.constant(_QUADS))) as i:
            multiply(4, 5, builder.mul(i, out.constant(_QUADS)))
        with builder.if_then(builder.icmp_signed("<", whole, quads)):
            multiply(6, 7, whole)
        for half in range(2):
            for group in range(2):
                offset = out.constant(4 * GROUP * (_HALF * half * 2 + group))
                address = builder.inttoptr(builder.add(sums, offset), I8.as_pointer())
                _call(out, "tilestored64", _register(2 * half + group), address, out.constant(2 * 4 * GROUP))
        return out.constant(0)

    return types.int64(codes, weights, biases, quads, sums), emit
