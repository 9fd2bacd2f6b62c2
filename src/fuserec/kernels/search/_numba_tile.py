"""Integer scores of a tile of queries by 32 rows, held in vector registers over the whole width of the codes.

    sums[q, r] = sum_d w[q, d] * c[r, d]                                 exact in int32, on every path

Four ways, chosen by what the compiler's target can do; the answers are the same to the bit:

    "amx"       for more than 8 queries TDPBSUD, 16 x 16 x 64 multiply-adds an instruction; for fewer as "vnni"
    "vnni"      VPDPBUSD on 512 bits: 4 products and their sum in each of 16 lanes, one instruction a 64 multiply-adds
    "avx2"      VPMADDWD on 256 bits, codes and weights widened to int16: two instructions a 16 multiply-adds
    "portable"  plain loops

Codes come as `packed.PackedCodes` holds them, as uint8 with 128 added; the constant 128 * sum(w) is taken off where a
sum starts. Weights are int8 (int16 for "avx2"), each query's padded to a whole number of cache lines; biases are
-128 * sum(w), repeated for the 16 rows of a group. Addresses are passed as integers, since a tile may begin anywhere in
the arrays.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from fuserec.kernels._arrays import Array
from fuserec.kernels.packed import GROUP, OFFSET, QUAD
from fuserec.kernels.search import _numba_amx
from fuserec.kernels.search._numba_amx import AMX_QUERIES
from fuserec.kernels.search._numba_emit import I8, I16, I32, I64, QUADS_A_LINE, Emitter, byte_at, intrinsic, set_int32
from fuserec.kernels.search._numba_jit import jit

TILE_GROUPS: Final = 2
TILE_ROWS: Final = TILE_GROUPS * GROUP

_BYTES_A_QUAD: Final = GROUP * QUAD


def target_features() -> frozenset[str]:
    """Return the CPU features that numba compiles for; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may lower them."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def choose_isa(features: frozenset[str], *, may_use_amx: bool) -> str:
    """Return "amx", "vnni", "avx2" or "portable" for a set of LLVM feature names."""
    if "avx512vnni" in features:
        return "amx" if may_use_amx and "amx-int8" in features else "vnni"
    return "avx2" if "avx2" in features else "portable"


_FEATURES: Final = target_features()
ISA: Final = choose_isa(_FEATURES, may_use_amx="amx-int8" in _FEATURES and _numba_amx.is_permitted())
# What is compiled for AMX depends on the target alone, as the compiler's cache does; whether it may run, on ISA.
_COMPILED: Final = choose_isa(_FEATURES, may_use_amx=True)
# The bytes of a weight: VPMADDWD takes both factors as int16.
WEIGHT_DTYPE: Final = np.dtype(np.int16 if ISA == "avx2" else np.int8)
# A tile is this many queries wide.
WIDTHS: Final = (1, 4, 8, AMX_QUERIES) if ISA == "amx" else (1, 4, 8)


def vnni_sums(queries: int) -> Any:
    """Return the intrinsic for `queries` by 32 rows: 2 * queries accumulators, 2 rows of codes, of 32 registers."""
    lanes = ir.VectorType(I32, GROUP)

    @intrinsic
    def sums_of_tile(_: Any, codes: Any, weights: Any, biases: Any, quads: Any, sums: Any) -> Any:
        def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            codes, weights, biases, quads, sums = arguments
            out = Emitter(builder)
            group_bytes = builder.mul(quads, out.constant(_BYTES_A_QUAD))
            query_bytes = out.query_bytes(quads, 1)

            def step(i: Any, totals: list[Any]) -> list[Any]:
                at = builder.mul(i, out.constant(_BYTES_A_QUAD))
                items = [
                    out.load(builder.add(codes, builder.mul(group_bytes, out.constant(g))), at, lanes)
                    for g in range(TILE_GROUPS)
                ]
                new = []
                for q in range(queries):
                    base = builder.add(weights, builder.mul(query_bytes, out.constant(q)))
                    weight = out.splat(out.load(base, builder.mul(i, out.constant(QUAD)), I32), GROUP)
                    for g in range(TILE_GROUPS):
                        arguments = [totals[q * TILE_GROUPS + g], items[g], weight]
                        new.append(out.call("llvm.x86.avx512.vpdpbusd.512", lanes, arguments))
                return new

            biases_of = [out.load(biases, out.constant(4 * GROUP * q), lanes) for q in range(queries)]
            start = [bias for bias in biases_of for _ in range(TILE_GROUPS)]
            for at, total in enumerate(out.accumulate(quads, start, step)):
                out.store(total, sums, at * 4 * GROUP)
            return out.constant(0)

        return types.int64(codes, weights, biases, quads, sums), emit

    return sums_of_tile


def avx2_sums(queries: int) -> Any:
    """Return the intrinsic for `queries` by 8 rows: 2 * queries accumulators, 2 rows of codes, of 16 registers.

    Each of the 8 lanes of an accumulator holds half of a quad of one of 4 rows; the halves meet after the loop.
    """
    words, pairs = ir.VectorType(I16, 16), ir.VectorType(I32, 8)
    even, odd = [0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]

    @intrinsic
    def sums_of_8_rows(_: Any, codes: Any, weights: Any, biases: Any, quads: Any, sums: Any) -> Any:
        def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            codes, weights, biases, quads, sums = arguments
            out = Emitter(builder)
            query_bytes = out.query_bytes(quads, 2)

            def step(i: Any, totals: list[Any]) -> list[Any]:
                at = builder.mul(i, out.constant(_BYTES_A_QUAD))
                items = []
                for half in range(2):
                    offset = builder.add(at, out.constant(16 * half))
                    items.append(builder.zext(out.load(codes, offset, ir.VectorType(I8, 16)), words))
                new = []
                for q in range(queries):
                    base = builder.add(weights, builder.mul(query_bytes, out.constant(q)))
                    quad = out.load(base, builder.mul(i, out.constant(2 * QUAD)), I64)
                    weight = builder.bitcast(out.splat(quad, 4), words)
                    for half in range(2):
                        product = out.call("llvm.x86.avx2.pmadd.wd", pairs, [items[half], weight])
                        new.append(builder.add(totals[2 * q + half], product))
                return new

            start = [ir.Constant(pairs, [0] * 8)] * (2 * queries)
            totals = out.accumulate(quads, start, step)
            for q in range(queries):
                low, high = totals[2 * q], totals[2 * q + 1]
                picks = [ir.Constant(ir.VectorType(I32, 8), pick) for pick in (even, odd)]
                halves = [builder.shuffle_vector(low, high, pick) for pick in picks]
                bias = out.load(biases, out.constant(4 * GROUP * q), ir.VectorType(I32, 8))
                out.store(builder.add(builder.add(halves[0], halves[1]), bias), sums, q * 4 * TILE_ROWS)
            return out.constant(0)

        return types.int64(codes, weights, biases, quads, sums), emit

    return sums_of_8_rows


@jit()
def _query_bytes(quads: int, weight_bytes: int) -> int:
    """As `Emitter.query_bytes`."""
    return (quads + QUADS_A_LINE - 1) // QUADS_A_LINE * QUADS_A_LINE * QUAD * weight_bytes


@jit()
def portable_sums(codes: int, weights: int, queries: int, quads: int, sums: int) -> None:
    """Sums of `queries` by 32 rows in plain loops; weights are int8."""
    query_bytes = _query_bytes(quads, 1)
    for q in range(queries):
        for r in range(TILE_ROWS):
            total = 0
            base = codes + (r // GROUP) * quads * _BYTES_A_QUAD + (r % GROUP) * QUAD
            for j in range(quads):
                for i in range(QUAD):
                    weight = np.int64(byte_at(weights + q * query_bytes + j * QUAD + i))
                    weight -= (weight & 128) << 1  # the byte is a signed one
                    total += (np.int64(byte_at(base + j * _BYTES_A_QUAD + i)) - OFFSET) * weight
            set_int32(sums + 4 * (q * TILE_ROWS + r), total)


# Which functions a tile is made of is settled here, when the module is imported, because a target without an
# instruction must not even see it.
if _COMPILED in ("amx", "vnni"):
    _sums_1, _sums_4, _sums_8 = vnni_sums(1), vnni_sums(4), vnni_sums(8)
elif _COMPILED == "avx2":
    _eight_rows_1, _eight_rows_4 = avx2_sums(1), avx2_sums(4)

    @jit()
    def _sums_1(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        for r in range(0, TILE_ROWS, 8):
            rows = codes + (r // GROUP) * quads * _BYTES_A_QUAD + (r % GROUP) * QUAD
            _eight_rows_1(rows, weights, biases, quads, sums + 4 * r)

    @jit()
    def _sums_4(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        for r in range(0, TILE_ROWS, 8):
            rows = codes + (r // GROUP) * quads * _BYTES_A_QUAD + (r % GROUP) * QUAD
            _eight_rows_4(rows, weights, biases, quads, sums + 4 * r)

    @jit()
    def _sums_8(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        _sums_4(codes, weights, biases, quads, sums)
        _sums_4(codes, weights + 4 * _query_bytes(quads, 2), biases + 16 * GROUP, quads, sums + 16 * TILE_ROWS)
else:

    @jit()
    def _sums_1(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        portable_sums(codes, weights, 1, quads, sums)

    @jit()
    def _sums_4(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        portable_sums(codes, weights, 4, quads, sums)

    @jit()
    def _sums_8(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        portable_sums(codes, weights, 8, quads, sums)


if _COMPILED == "amx":
    _sums_32, _configure, _release = (
        _numba_amx.amx_sums, _numba_amx.configure_registers, _numba_amx.release_registers,
    )  # fmt: skip
else:

    @jit()
    def _sums_32(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        """Nothing: without AMX no tile is that wide."""

    @jit()
    def _configure(quads: int, config: Array) -> None:
        pass

    @jit()
    def _release() -> None:
        pass


@jit()
def open_tiles(width: int, quads: int, config: Array) -> None:
    """Prepare this thread for tiles of a width; `config` is 64 bytes of scratch."""
    if width == AMX_QUERIES:
        _configure(quads, config)


@jit()
def close_tiles(width: int) -> None:
    """Undo `open_tiles`."""
    if width == AMX_QUERIES:
        _release()


@jit()
def tile_sums(width: int, codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
    """Write the sums (width, 32) int32 of a tile, for one of `WIDTHS`."""
    if width == AMX_QUERIES:
        _sums_32(codes, weights, biases, quads, sums)
    elif width == 8:
        _sums_8(codes, weights, biases, quads, sums)
    elif width == 4:
        _sums_4(codes, weights, biases, quads, sums)
    else:
        _sums_1(codes, weights, biases, quads, sums)
