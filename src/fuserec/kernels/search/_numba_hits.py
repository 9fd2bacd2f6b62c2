"""Which rows of a tile may score above the thresholds of its queries."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from fuserec.kernels.packed import GROUP
from fuserec.kernels.search._numba_emit import F32, I16, I32, I64, Emitter, intrinsic
from fuserec.kernels.search._numba_tile import TILE_GROUPS, TILE_ROWS

MOST_QUERIES: Final = 32


@intrinsic
def tile_hits(_: Any, queries: Any, sums: Any, scale: Any, residual: Any, reach: Any, bounds: Any, masks: Any) -> Any:
    """Write a mask of the 32 rows for each of 1 to 32 queries, and return one of the queries whose mask is not 0.

    A row's bit is set if not (sum * scale + residual * bound[0] + reach * bound[1] <= bound[2]). There is room for 32
    masks, which begin as 0.
    """
    rows = ir.VectorType(F32, GROUP)

    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        queries, sums, scale, residual, reach, bounds, masks = arguments
        out = Emitter(builder)
        fused = ("contract",)
        places = [out.constant(4 * GROUP * g) for g in range(TILE_GROUPS)]
        scales = [out.load(scale, place, rows) for place in places]
        residuals = [out.load(residual, place, rows) for place in places]
        reaches = [out.splat(out.load(reach, out.constant(4 * g), F32), GROUP) for g in range(TILE_GROUPS)]

        def step(i: Any, _: list[Any]) -> list[Any]:
            bound = builder.add(bounds, builder.mul(i, out.constant(12)))
            per_residual, per_reach, threshold = (
                out.splat(out.load(bound, out.constant(4 * at), F32), GROUP) for at in range(3)
            )
            total_at = builder.add(sums, builder.mul(i, out.constant(4 * TILE_ROWS)))
            mask_at = builder.add(masks, builder.mul(i, out.constant(4)))
            for g, place in enumerate(places):
                total = builder.sitofp(out.load(total_at, place, ir.VectorType(I32, GROUP)), rows)
                slack = builder.fmul(reaches[g], per_reach)
                slack = builder.fadd(builder.fmul(residuals[g], per_residual, flags=fused), slack, flags=fused)
                upper = builder.fadd(builder.fmul(total, scales[g], flags=fused), slack, flags=fused)
                bits = builder.bitcast(builder.fcmp_unordered(">", upper, threshold), I16)
                out.store(bits, mask_at, 2 * g)
            return []

        out.accumulate(queries, [], step)
        every = out.load(masks, out.constant(0), ir.VectorType(I32, MOST_QUERIES))
        hit = builder.icmp_signed("!=", every, ir.Constant(every.type, [0] * MOST_QUERIES))
        asking = builder.sub(builder.shl(out.constant(1), queries), out.constant(1))
        return builder.and_(builder.zext(builder.bitcast(hit, I32), I64), asking)

    return types.int64(queries, sums, scale, residual, reach, bounds, masks), emit
