# mypy: ignore-errors
# Numba types what is compiled here, and sees integers of 64 bits and raw addresses where mypy sees int.
"""Integer scores of a tile of queries by 32 rows, held in vector registers over the whole width of the codes.

    sums[q, r] = sum_d w[q, d] * c[r, d]                                 exact in int32, on every path

Three ways, chosen by what the compiler's target can do; the answers are the same to the bit:

    "vnni"      VPDPBUSD on 512 bits: 4 products and their sum in each of 16 lanes, one instruction a 64 multiply-adds
    "avx2"      VPMADDWD on 256 bits, codes and weights widened to int16: two instructions a 16 multiply-adds
    "portable"  plain loops

Codes come as `packed.PackedCodes` holds them, as uint8 with 128 added; the constant 128 * sum(w) is taken off where a
sum starts. Addresses are passed as integers, since a tile may begin anywhere in the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fuserec.kernels.packed import GROUP, OFFSET, QUAD
from fuserec.kernels.search._numba_jit import jit

TILE_GROUPS: Final = 2
TILE_ROWS: Final = TILE_GROUPS * GROUP

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES_A_QUAD: Final = GROUP * QUAD


def _target_features() -> frozenset[str]:
    """Return the CPU features that numba compiles for; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may lower them."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def choose_isa(features: frozenset[str]) -> str:
    """Return "vnni", "avx2" or "portable" for a set of LLVM feature names."""
    if "avx512vnni" in features:
        return "vnni"
    return "avx2" if "avx2" in features else "portable"


ISA: Final = choose_isa(_target_features())
# The bytes of a weight: VPMADDWD takes both factors as int16.
WEIGHT_DTYPE: Final = np.dtype(np.int16 if ISA == "avx2" else np.int8)


class _Emitter:
    """Shorthands over an IR builder."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def constant(self, value: int) -> Any:
        return ir.Constant(_I64, value)

    def load(self, base: Any, offset: Any, of: Any) -> Any:
        address = self.builder.inttoptr(self.builder.add(base, offset), of.as_pointer())
        return self.builder.load(address, align=1)

    def store(self, value: Any, base: Any, offset: int) -> None:
        address = self.builder.inttoptr(self.builder.add(base, self.constant(offset)), value.type.as_pointer())
        self.builder.store(value, address, align=1)

    def splat(self, value: Any, lanes: int) -> Any:
        vector = ir.VectorType(value.type, lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

    def call(self, name: str, returned: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(returned, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def accumulate(self, steps: Any, start: list[Any], step: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Emit `for i in range(steps): sums = step(i, sums)` with the sums in registers; steps is above 0."""
        builder = self.builder
        before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        i = builder.phi(_I64)
        sums = [builder.phi(value.type) for value in start]
        new = step(i, sums)
        following = builder.add(i, self.constant(1))
        for phi, first, next_ in zip([i, *sums], [self.constant(0), *start], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, steps), body, after)
        builder.position_at_end(after)
        return new


def vnni_sums(queries: int) -> Any:
    """Return the intrinsic for `queries` by 32 rows: 2 * queries accumulators, 2 rows of codes, of 32 registers."""
    lanes = ir.VectorType(_I32, GROUP)

    @intrinsic
    def sums_of_tile(_: Any, codes: Any, weights: Any, biases: Any, quads: Any, sums: Any) -> Any:
        def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            codes, weights, biases, quads, sums = arguments
            out = _Emitter(builder)
            group_bytes = builder.mul(quads, out.constant(_BYTES_A_QUAD))
            query_bytes = builder.mul(quads, out.constant(QUAD))

            def step(i: Any, totals: list[Any]) -> list[Any]:
                at = builder.mul(i, out.constant(_BYTES_A_QUAD))
                items = [
                    out.load(builder.add(codes, builder.mul(group_bytes, out.constant(g))), at, lanes)
                    for g in range(TILE_GROUPS)
                ]
                new = []
                for q in range(queries):
                    base = builder.add(weights, builder.mul(query_bytes, out.constant(q)))
                    weight = out.splat(out.load(base, builder.mul(i, out.constant(QUAD)), _I32), GROUP)
                    for g in range(TILE_GROUPS):
                        arguments = [totals[q * TILE_GROUPS + g], items[g], weight]
                        new.append(out.call("llvm.x86.avx512.vpdpbusd.512", lanes, arguments))
                return new

            start = [
                out.splat(out.load(biases, out.constant(4 * q), _I32), GROUP)
                for q in range(queries)
                for _ in range(TILE_GROUPS)
            ]
            for at, total in enumerate(out.accumulate(quads, start, step)):
                out.store(total, sums, at * 4 * GROUP)
            return out.constant(0)

        return types.int64(codes, weights, biases, quads, sums), emit

    return sums_of_tile


def avx2_sums(queries: int) -> Any:
    """Return the intrinsic for `queries` by 8 rows: 2 * queries accumulators, 2 rows of codes, of 16 registers.

    Each of the 8 lanes of an accumulator holds half of a quad of one of 4 rows; the halves meet after the loop.
    """
    words, pairs = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
    even, odd = [0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]

    @intrinsic
    def sums_of_8_rows(_: Any, codes: Any, weights: Any, biases: Any, quads: Any, sums: Any) -> Any:
        def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            codes, weights, biases, quads, sums = arguments
            out = _Emitter(builder)
            query_bytes = builder.mul(quads, out.constant(2 * QUAD))

            def step(i: Any, totals: list[Any]) -> list[Any]:
                at = builder.mul(i, out.constant(_BYTES_A_QUAD))
                items = []
                for half in range(2):
                    offset = builder.add(at, out.constant(16 * half))
                    items.append(builder.zext(out.load(codes, offset, ir.VectorType(_I8, 16)), words))
                new = []
                for q in range(queries):
                    base = builder.add(weights, builder.mul(query_bytes, out.constant(q)))
                    quad = out.load(base, builder.mul(i, out.constant(2 * QUAD)), _I64)
                    weight = builder.bitcast(out.splat(quad, 4), words)
                    for half in range(2):
                        product = out.call("llvm.x86.avx2.pmadd.wd", pairs, [items[half], weight])
                        new.append(builder.add(totals[2 * q + half], product))
                return new

            start = [ir.Constant(pairs, [0] * 8)] * (2 * queries)
            totals = out.accumulate(quads, start, step)
            for q in range(queries):
                low, high = totals[2 * q], totals[2 * q + 1]
                picks = [ir.Constant(ir.VectorType(_I32, 8), pick) for pick in (even, odd)]
                halves = [builder.shuffle_vector(low, high, pick) for pick in picks]
                bias = out.splat(out.load(biases, out.constant(4 * q), _I32), 8)
                out.store(builder.add(builder.add(halves[0], halves[1]), bias), sums, q * 4 * TILE_ROWS)
            return out.constant(0)

        return types.int64(codes, weights, biases, quads, sums), emit

    return sums_of_8_rows


@intrinsic
def _byte_at(_: Any, address: Any) -> Any:
    """The uint8 at an address."""
    return types.uint8(address), lambda _, builder, __, arguments: _Emitter(builder).load(
        arguments[0], ir.Constant(_I64, 0), _I8
    )


@intrinsic
def _set_int32(_: Any, address: Any, value: Any) -> Any:
    """Store an int32 at an address."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        _Emitter(builder).store(builder.trunc(arguments[1], _I32), arguments[0], 0)
        return ir.Constant(_I64, 0)

    return types.int64(address, types.int64), emit


@jit()
def portable_sums(codes: int, weights: int, queries: int, quads: int, sums: int) -> None:
    """Sums of `queries` by 32 rows in plain loops; weights are int8."""
    for q in range(queries):
        for r in range(TILE_ROWS):
            total = 0
            base = codes + (r // GROUP) * quads * _BYTES_A_QUAD + (r % GROUP) * QUAD
            for j in range(quads):
                for i in range(QUAD):
                    weight = np.int64(_byte_at(weights + (q * quads + j) * QUAD + i))
                    weight -= (weight & 128) << 1  # the byte is a signed one
                    total += (np.int64(_byte_at(base + j * _BYTES_A_QUAD + i)) - OFFSET) * weight
            _set_int32(sums + 4 * (q * TILE_ROWS + r), total)


@intrinsic
def hits(_: Any, sums: Any, scale: Any, residual: Any, reach: Any, bound: Any) -> Any:
    """Return a bit for each of 32 rows: not (sum * scale + residual * bound[0] + reach * bound[1] <= bound[2])."""
    rows = ir.VectorType(_F32, GROUP)

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        sums, scale, residual, reach, bound = arguments
        out = _Emitter(builder)
        fused = ("contract",)
        per_residual, per_reach, threshold = (out.load(bound, out.constant(4 * at), _F32) for at in range(3))
        found = out.constant(0)
        for g in range(TILE_GROUPS):
            offset = out.constant(4 * GROUP * g)
            total = builder.sitofp(out.load(sums, offset, ir.VectorType(_I32, GROUP)), rows)
            loose = out.splat(builder.fmul(out.load(reach, out.constant(4 * g), _F32), per_reach), GROUP)
            slack = builder.fmul(out.load(residual, offset, rows), out.splat(per_residual, GROUP), flags=fused)
            slack = builder.fadd(slack, loose, flags=fused)
            upper = builder.fadd(builder.fmul(total, out.load(scale, offset, rows), flags=fused), slack, flags=fused)
            above = builder.fcmp_unordered(">", upper, out.splat(threshold, GROUP))
            bits = builder.zext(builder.bitcast(above, _I16), _I64)
            found = builder.or_(found, builder.shl(bits, out.constant(GROUP * g)))
        return found

    return types.int64(sums, scale, residual, reach, bound), emit


@intrinsic
def lowest_bit(_: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit; `bits` is not 0."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return _Emitter(builder).call("llvm.cttz.i64", _I64, [arguments[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(bits), emit


@intrinsic
def prefetch(_: Any, address: Any) -> Any:
    """Ask for the cache line at an address."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        hints = [ir.Constant(_I32, hint) for hint in (0, 3, 1)]  # to read, into all caches, data
        _Emitter(builder).call(
            "llvm.prefetch.p0", ir.VoidType(), [builder.inttoptr(arguments[0], _I8.as_pointer()), *hints]
        )
        return ir.Constant(_I64, 0)

    return types.int64(address), emit


# A tile is 1, 4 or 8 queries wide; which functions it is made of is settled here, when the module is imported, because
# a target without an instruction must not even see it.
if ISA == "vnni":
    tile_sums_1, tile_sums_4, tile_sums_8 = vnni_sums(1), vnni_sums(4), vnni_sums(8)
elif ISA == "avx2":
    _eight_rows_1, _eight_rows_4 = avx2_sums(1), avx2_sums(4)

    @jit()
    def tile_sums_1(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        for r in range(0, TILE_ROWS, 8):
            rows = codes + (r // GROUP) * quads * _BYTES_A_QUAD + (r % GROUP) * QUAD
            _eight_rows_1(rows, weights, biases, quads, sums + 4 * r)

    @jit()
    def tile_sums_4(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        for r in range(0, TILE_ROWS, 8):
            rows = codes + (r // GROUP) * quads * _BYTES_A_QUAD + (r % GROUP) * QUAD
            _eight_rows_4(rows, weights, biases, quads, sums + 4 * r)

    @jit()
    def tile_sums_8(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        tile_sums_4(codes, weights, biases, quads, sums)
        tile_sums_4(codes, weights + 8 * QUAD * quads, biases + 16, quads, sums + 16 * TILE_ROWS)
else:

    @jit()
    def tile_sums_1(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        portable_sums(codes, weights, 1, quads, sums)

    @jit()
    def tile_sums_4(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        portable_sums(codes, weights, 4, quads, sums)

    @jit()
    def tile_sums_8(codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
        portable_sums(codes, weights, 8, quads, sums)
