"""LLVM instructions that numba does not emit by itself, and shorthands to write loops of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, Final, ParamSpec

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from fuserec.kernels._arrays import CACHE_LINE_BYTES, Array
from fuserec.kernels.packed import QUAD, ByteArray
from fuserec.kernels.search._numba_jit import jit

LINE_BYTES: Final = CACHE_LINE_BYTES
QUADS_A_LINE: Final = LINE_BYTES // QUAD
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


_P = ParamSpec("_P")


def intrinsic(function: Callable[Concatenate[Any, _P], Any]) -> Callable[_P, Any]:
    """Make an intrinsic: numba passes the typing context first, and callers pass the rest."""
    made: Callable[_P, Any] = numba_intrinsic(function)
    return made


class Emitter:
    """Shorthands over an IR builder."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def constant(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def load(self, base: Any, offset: Any, of: Any) -> Any:
        address = self.builder.inttoptr(self.builder.add(base, offset), of.as_pointer())
        return self.builder.load(address, align=1)

    def store(self, value: Any, base: Any, offset: int) -> None:
        address = self.builder.inttoptr(self.builder.add(base, self.constant(offset)), value.type.as_pointer())
        self.builder.store(value, address, align=1)

    def splat(self, value: Any, lanes: int) -> Any:
        vector = ir.VectorType(value.type, lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

    def call(self, name: str, returned: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(returned, [argument.type for argument in arguments])
        function: Any = cgutils.get_or_insert_function(self.builder.module, kind, name)  # type: ignore[no-untyped-call]
        return self.builder.call(function, arguments)

    def query_bytes(self, quads: Any, weight_bytes: int) -> Any:
        """Return how far apart the weights of two queries are: their quads, padded to whole cache lines of int8."""
        builder = self.builder
        padded = builder.and_(builder.add(quads, self.constant(QUADS_A_LINE - 1)), self.constant(-QUADS_A_LINE))
        return builder.mul(padded, self.constant(QUAD * weight_bytes))

    @contextmanager
    def loop(self, steps: Any) -> Iterator[Any]:
        """Emit `for i in range(steps)` around what is emitted inside, and yield i; steps may be 0."""
        with cgutils.for_range(self.builder, steps, intp=I64) as loop:
            yield loop.index

    def accumulate(self, steps: Any, start: list[Any], step: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Emit `for i in range(steps): sums = step(i, sums)` with the sums in registers; steps is above 0."""
        builder = self.builder
        before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        i = builder.phi(I64)
        sums = [builder.phi(value.type) for value in start]
        new = step(i, sums)
        following = builder.add(i, self.constant(1))
        for phi, first, next_ in zip([i, *sums], [self.constant(0), *start], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, steps), body, after)
        builder.position_at_end(after)
        return new


@intrinsic
def byte_at(_: Any, address: Any) -> Any:
    """The uint8 at an address."""
    return types.uint8(address), lambda _, builder, __, arguments: Emitter(builder).load(
        arguments[0], ir.Constant(I64, 0), I8
    )


@intrinsic
def set_int32(_: Any, address: Any, value: Any) -> Any:
    """Store an int32 at an address."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        Emitter(builder).store(builder.trunc(arguments[1], I32), arguments[0], 0)
        return ir.Constant(I64, 0)

    return types.int64(address, types.int64), emit


@intrinsic
def lowest_bit(_: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit; `bits` is not 0."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return Emitter(builder).call("llvm.cttz.i64", I64, [arguments[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(bits), emit


@intrinsic
def prefetch(_: Any, address: Any) -> Any:
    """Ask for the cache line at an address."""

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        hints = [ir.Constant(I32, hint) for hint in (0, 3, 1)]  # to read, into all caches, data
        Emitter(builder).call(
            "llvm.prefetch.p0", ir.VoidType(), [builder.inttoptr(arguments[0], I8.as_pointer()), *hints]
        )
        return ir.Constant(I64, 0)

    return types.int64(address), emit


@jit()
def address_of(array: Array) -> int:
    """Return the address of an array. It is the caller's to keep the array for as long as the address is in use."""
    return np.int64(array.ctypes.data)


@jit()
def on_cache_lines(size: int) -> ByteArray:
    """Return `size` bytes that begin on a cache line; `aligned_empty` for compiled code."""
    room = np.empty(size + LINE_BYTES, np.uint8)
    skip = -address_of(room) % LINE_BYTES
    return room[skip : skip + size]
