"""CPU twin of the search for known queries: when it is one compiled call, and the call."""

from __future__ import annotations

import numba
import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray, counted, read_only
from fuserec.kernels.filters import ExcludedRows
from fuserec.kernels.packed import PackedCodes
from fuserec.kernels.search._numba import allocate_answers, as_table
from fuserec.kernels.search._numba_jit import compiled_once
from fuserec.kernels.search._numba_known import PROVEN, Asked, Known, search_known
from fuserec.kernels.search._numba_rescore import Answers
from fuserec.kernels.search._numba_run import Plan
from fuserec.kernels.search._numba_tile import WIDTHS
from fuserec.kernels.search.cpu_config import SERIAL_WORK, choose_cpu_config


class KnownSearch:
    """One compiled call over arrays that stay the same; arguments as `KnownQueries` has them.

    Args:
        items: (N, D) float32.
        codes: Their codes.
        item_ids: (N,) int64.
        vectors: (V, D) float32, C-contiguous.
        excluded: U lists.
        normalize: Whether vectors are scaled to unit length.
        magnitudes: From and up to where the sum of a vector's absolute values promises sound scores.
    """

    def __init__(
        self,
        items: FloatArray,
        codes: PackedCodes,
        item_ids: IntArray,
        vectors: FloatArray,
        excluded: ExcludedRows,
        *,
        normalize: bool,
        magnitudes: tuple[float, float],
    ) -> None:
        self._table = as_table(items, codes)
        self._known = Known(read_only(vectors), excluded.rows, excluded.offsets, read_only(item_ids))
        self._normalize, self._magnitudes = normalize, magnitudes

    def search(self, lists: IntArray, rows: IntArray, ids: IntArray, offsets: IntArray, k: int) -> Answers | None:
        """Return the answers, item ids in place of rows; None where it takes several threads, or the long way.

        Args:
            lists: (B,) int64: the list that each query excludes; B is above 0.
            rows: (B,) int64: its vector.
            ids: (E,) int64 item ids that are excluded too, query after query.
            offsets: (B + 1,) int64: those of query `b` are `ids[offsets[b]:offsets[b + 1]]`.
            k: At least 1.
        """
        batch, (n_rows, dim) = len(rows), self._table.items.shape
        # Asking numba takes a lock; it matters only where threads would share the work.
        threads = numba.get_num_threads() if batch * n_rows * dim >= SERIAL_WORK["codes"] else 1
        config = choose_cpu_config(batch, n_rows, dim, k, threads, has_codes=True, widths=WIDTHS)
        if config.scan != "codes" or config.row_parts > 1 or min(config.query_parts, threads) > 1:
            return None
        plan = Plan(k, self._normalize, config.tile, config.stride, config.lanes, config.capacity)
        most = -(-batch // config.query_parts)
        asked = Asked(read_only(lists), read_only(rows), read_only(ids), read_only(offsets))
        answers = allocate_answers(batch, k)
        status = search_known(self._known, self._table, plan, asked, most, *self._magnitudes, answers)
        return answers if status == PROVEN else None

    def warm_up(self) -> None:
        """Search once; see `ItemIndex.warm_up`."""
        with compiled_once(search_known):
            self.search(counted(1), counted(1), counted(0), np.zeros(2, np.int64), 1)
