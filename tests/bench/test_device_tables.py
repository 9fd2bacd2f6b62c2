"""Tables that are made on a device are those that an index is copied to, and a cell is searched where it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from bench.device import grid, tables
from bench.device.grid import Cell
from bench.device.rivals import KINDS, Rival, Tables
from bench.device.subject import resident, subject
from fuserec.kernels import ItemIndex
from fuserec.kernels.search import _kernel

INTERPRETED = isinstance(_kernel.block_best_kernel, InterpretedFunction)
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled, as there is a CUDA device")


def test_codes_of_a_device_are_those_of_the_cpu() -> None:
    assert tables.check("cpu", 500) is None


def test_codes_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tables.device_codes

    def wrong(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values, scales, residuals = right(rows)
        values[3, 0] += 1
        return values, scales, residuals

    monkeypatch.setattr(tables, "device_codes", wrong)
    assert "1 codes of" in (tables.check("cpu", 500) or "")


def test_residuals_are_upper_bounds() -> None:
    rows = tables.normal_rows(300, 33, torch.float32, "cpu")
    values, scales, residuals = tables.device_codes(rows)
    left = rows.double() - values.double() * scales.double()[:, None]
    assert (residuals.double() >= left.norm(dim=1)).all()


@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (150, 33), (65, 16)])
def test_a_packed_index_is_that_of_the_cpu(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_CHUNK_BYTES", 8 * shape[1] * 40)  # several chunks
    rows = tables.normal_rows(*shape, torch.float32, "cpu")
    want, got = ItemIndex.build(rows.numpy()), tables.packed_index(rows)
    assert want.codes is not None and got.codes is not None
    assert (got.embeddings == want.embeddings).all() and (got.ids == want.ids).all() and got.max_abs == want.max_abs
    assert (got.codes.codes == want.codes.codes).all() and (got.codes.scale == want.codes.scale).all()
    np.testing.assert_allclose(got.codes.residual, want.codes.residual, rtol=2.0**-22)
    np.testing.assert_allclose(got.codes.reach, want.codes.reach, rtol=2.0**-22)
    got.save(tmp_path / "index.safetensors")
    assert ItemIndex.load(tmp_path / "index.safetensors").rows == shape[0]


@needs_interpreter
@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dim", [16, 33])
def test_a_resident_table_is_that_of_an_index(dim: int, dtype: torch.dtype, place: str) -> None:
    rows = tables.normal_rows(150, dim, dtype, "cpu")
    want = ItemIndex.build(rows.numpy()).to("interpret", rows=place)._table  # type: ignore[arg-type]
    _, made = resident(rows, place)
    got = made._table
    assert (got.dim, got.normalize, got.placement, got.rows) == (dim, False, place, 150)
    assert got.items.dtype == want.items.dtype and torch.equal(got.items, want.items)
    assert torch.equal(got.item_ids, want.item_ids) and torch.equal(got.limits, want.limits)
    assert got.codes is not None and want.codes is not None
    assert torch.equal(got.codes.values, want.codes.values) and torch.equal(got.codes.scales, want.codes.scales)
    assert torch.allclose(got.codes.reaches, want.codes.reaches, rtol=2.0**-22, atol=0)


@needs_interpreter
def test_a_subject_answers_as_its_index_does() -> None:
    rows = tables.normal_rows(60, 16, torch.float32, "cpu")
    queries = np.random.default_rng(0).standard_normal((2, 16), dtype=np.float32)
    excluded = np.array([[3, 5], [7, 7]])
    want = ItemIndex.build(rows.numpy()).search(queries, 5, exclude=excluded, backend="reference")
    index, there = resident(rows)
    assert index.search(queries, 5, exclude=excluded, backend="interpret").ids.tolist() == want.ids.tolist()
    found = there.search(torch.from_numpy(queries), 5, exclude=torch.from_numpy(excluded))
    assert found.ids.tolist() == want.ids.tolist()
    work = subject(rows, "device", "cpu").work(torch.from_numpy(queries), 5, torch.from_numpy(excluded))
    assert work is not None and work[1] == "call"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.exact], ids=lambda kind: kind.name)
@pytest.mark.parametrize("n_excluded", [0, 4])
def test_rivals_find_what_there_is(kind: object, n_excluded: int) -> None:
    rows = tables.normal_rows(700, 16, torch.float32, "cpu")
    queries = np.random.default_rng(0).standard_normal((3, 16), dtype=np.float32)
    best = np.argsort(-(queries @ rows.numpy().T), axis=1)
    excluded = torch.from_numpy(best[:, 1 : 1 + n_excluded].copy()) if n_excluded else None
    rival = Rival(kind, Tables(rows).of(kind.dtype), 3, 6, excluded, "cpu")  # type: ignore[attr-defined, arg-type]
    found = rival.search(queries)[1]
    kept = np.delete(best, np.arange(1, 1 + n_excluded), axis=1)[:, :6]
    shared = np.mean([np.isin(mine, theirs).mean() for mine, theirs in zip(kept, found, strict=True)])
    assert shared == 1 if kind.dtype == "fp32" else shared > 0.8  # type: ignore[attr-defined]
    assert excluded is None or not any(np.isin(found[b], excluded[b]).any() for b in range(3))


def test_the_cells_begin_with_those_of_the_aims() -> None:
    cells = grid.cells()
    assert cells[: len(grid.aimed())] == grid.aimed()
    assert len({tuple(cell.cells().values()) for cell in cells}) == len(cells)
    bases = (grid.MILLION, grid.TEN_MILLION, grid.WIDE, grid.SMALL)
    for base in bases:
        for k in grid.KS:
            for batch in grid.BATCHES:
                for excluded in (0, 100):
                    wanted = Cell(base.rows, base.dim, k, batch, excluded).cells()
                    assert any(cell.cells() == wanted for cell in cells), wanted
    assert {cell.dtype for cell in cells} == {"float32", "float16"}
    assert {cell.place for cell in cells} == {"device", "host"}
