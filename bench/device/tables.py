"""Tables that are made and coded on the device: ten million rows in a second, where the CPU would take a minute.

The codes are those of `fuserec.kernels.quantize`, by the same formulas in float64; a step compares the two before it
relies on them (`check`).
"""

from __future__ import annotations

import numpy as np
import torch

from fuserec.kernels import ItemIndex
from fuserec.kernels._arrays import FloatArray, aligned_empty
from fuserec.kernels.packed import GROUP, OFFSET, QUAD, PackedCodes, packed_shapes
from fuserec.kernels.quantize import LARGEST_CODED, LEVELS, SMALLEST_CODED, quantize_rows

_CHUNK_BYTES = 1 << 29  # float64 scratch


def normal_rows(rows: int, dim: int, dtype: torch.dtype, device: str, seed: int = 0) -> torch.Tensor:
    """Return (rows, dim) normal numbers on `device`."""
    generator = torch.Generator(device).manual_seed(seed)
    table = torch.empty((rows, dim), dtype=dtype, device=device)
    step = max(1, _CHUNK_BYTES // (8 * dim))
    for start in range(0, rows, step):
        part = table[start : start + step]
        part.copy_(torch.randn(part.shape, generator=generator, device=device))
    return table


def device_codes(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the codes (N, D) int8, scales (N,) and residuals (N,) float32 of finite rows, where these are.

    As `quantize.quantize_rows`: the sums of the residuals run in another order, so these may differ in the last bit,
    and are upper bounds all the same.
    """
    count, dim = rows.shape
    values = torch.empty((count, dim), dtype=torch.int8, device=rows.device)
    scales, residuals = (torch.empty(count, dtype=torch.float32, device=rows.device) for _ in range(2))
    step = max(1, _CHUNK_BYTES // (8 * dim))
    for start in range(0, count, step):
        part = slice(start, start + step)
        wide = rows[part].double()
        peak = wide.abs().amax(1)
        coded = (peak >= SMALLEST_CODED) & (peak <= LARGEST_CODED)
        scale = torch.where(coded, peak / LEVELS, 0.0).float()
        code = torch.round(wide / torch.where(coded, scale, torch.inf).double()[:, None])  # half to even, as rint
        values[part] = code.to(torch.int8)
        scales[part] = scale
        norms = (wide - code * scale.double()[:, None]).square().sum(1).sqrt()
        residuals[part] = _round_up(norms * (1 + (dim + 4) * 2.0**-52))
    return values, scales, residuals


def _round_up(values: torch.Tensor) -> torch.Tensor:
    nearest = values.float()
    return torch.where(
        nearest.double() < values, torch.nextafter(nearest, torch.full_like(nearest, torch.inf)), nearest
    )


def check(device: str, rows: int = 5_000) -> str | None:
    """Return how the codes of this device differ from those of the CPU; None where they do not."""
    for dim in (3, 64, 128, 768):
        table = normal_rows(rows, dim, torch.float32, device, seed=dim)
        table[: rows // 2] *= torch.logspace(-30, 30, rows // 2, 2.0, device=device)[:, None]
        table[7] = 0
        want = quantize_rows(table.cpu().numpy())
        values, scales, residuals = (tensor.cpu().numpy() for tensor in device_codes(table))
        if (values != want.values).any() or (scales != want.scale).any():
            return f"{dim} columns: {int((values != want.values).sum())} codes of {values.size} differ"
        apart = np.abs(residuals.view(np.int32).astype(np.int64) - want.residual.view(np.int32))
        if apart.max() > 1:
            return f"{dim} columns: a residual differs by {apart.max()} units in the last place, expected 1 at most"
    return None


def packed_index(rows: torch.Tensor) -> ItemIndex:
    """Return the index of (N, D) float32 rows as `ItemIndex.build` makes it, coded and packed where the rows are."""
    count, dim = rows.shape
    values, scales, residuals = device_codes(rows)
    shapes = packed_shapes(count, dim)
    groups, quads = shapes["codes"][:2]
    packed = PackedCodes(
        codes=aligned_empty(shapes["codes"], np.uint8),
        scale=_grouped(scales, groups),
        residual=_grouped(residuals, groups),
        reach=aligned_empty(shapes["reach"], np.float32),
        rows=count,
        dim=dim,
    )
    step = max(1, _CHUNK_BYTES // (8 * dim * GROUP))
    for start in range(0, groups, step):
        part = slice(start * GROUP, (start + step) * GROUP)
        here = min(step, groups - start)
        codes = torch.zeros((here * GROUP, quads * QUAD), dtype=torch.int8, device=rows.device)
        codes[: len(values[part]), :dim] = values[part]
        offset = (codes.view(torch.uint8) ^ OFFSET).view(here, GROUP, quads, QUAD).transpose(1, 2)
        packed.codes[start : start + here] = offset.cpu().numpy()
        norms = rows[part].double().square().sum(1).sqrt() * (1 + (dim + 4) * 2.0**-52)
        reach = _round_up(norms) + residuals[part]
        padded = torch.zeros(here * GROUP, device=rows.device)
        padded[: len(reach)] = torch.nextafter(reach, torch.full_like(reach, torch.inf))
        packed.reach[start : start + here] = padded.view(here, GROUP).amax(1).cpu().numpy()
    embeddings = aligned_empty((count, dim), np.float32)
    torch.from_numpy(embeddings).copy_(rows)
    return ItemIndex(embeddings, np.arange(count), "dot", float(rows.abs().max()), packed)


def _grouped(values: torch.Tensor, groups: int) -> FloatArray:
    padded: FloatArray = aligned_empty((groups, GROUP), np.float32)
    padded[:] = 0
    padded.reshape(-1)[: len(values)] = values.cpu().numpy()
    return padded
