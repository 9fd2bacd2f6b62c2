"""Lookups and bags are checked when they are made; query arrays when they arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fuserec.kernels import Bag, ItemIndex, Lookup
from fuserec.kernels.query import as_pool

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("table", "ids", "message"),
    [
        (TABLE, [0, 4, 5], r"Lookup.ids: got 4 at position 1, expected 0 to 3 \(rows of the table\)"),
        (TABLE, [0, 1, -1], "Lookup.ids: got -1 at position 2"),
        (TABLE, [0.5], "Lookup.ids: got dtype float64, expected integers"),
        (TABLE, [[0]], r"Lookup.ids: got shape \(1, 1\), expected one dimension"),
        (TABLE[0], [0], r"Lookup.table: got shape \(3,\), expected two dimensions"),
        (TABLE.astype(np.float64), [0], "Lookup.table: got dtype float64, expected float32 or float16"),
    ],
    ids=["beyond", "negative", "float_ids", "two_axes", "flat_table", "float64"],
)
def test_bad_lookups_are_refused(table: object, ids: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lookup(table, ids)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "offsets", "weights", "message"),
    [
        ([0, 9], [0, 2], None, "Bag.ids: got 9 at position 1"),
        ([0, 1], [1, 2], None, r"Bag.offsets: got \[1\] at the start, expected 0"),
        ([0, 1], [], None, r"Bag.offsets: got \[\] at the start, expected 0"),
        ([0, 1], [0, 2, 1, 2], None, "Bag.offsets: got 1 after 2 at position 2, expected to rise"),
        ([0, 1], [0, 1], None, "Bag.offsets: ends at 1, expected the number of ids, 2"),
        ([0, 1], [0.0, 2.0], None, "Bag.offsets: got dtype float64, expected integers"),
        ([0, 1], [0, 2], [1.0], r"Bag.weights: got shape \(1,\), expected one for each id, \(2,\)"),
        ([0, 1], [0, 2], [1, 2], "Bag.weights: got dtype int64, expected a float dtype"),
        ([0, 1], [0, 2], [1.0, np.nan], "Bag.weights: got nan at position 1, expected finite"),
    ],
    ids=[
        "id", "start", "no_offsets", "fall", "end", "float_offsets", "few_weights", "int_weights", "nan_weight",
    ],
)  # fmt: skip
def test_bad_bags_are_refused(ids: object, offsets: object, weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bag(TABLE, ids, offsets, weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (TABLE[0], r"query: got shape \(3,\), expected two dimensions"),
        (TABLE[:, :2], r"query: got shape \(4, 2\), expected 3 columns as in the item index"),
        (TABLE.astype(np.int64), "query: got dtype int64, expected float32 or float16"),
        (Lookup(TABLE[:, :2], [0]), r"Lookup.table: got shape \(4, 2\), expected 3 columns"),
        (Bag(TABLE[:, :2], [0], [0, 1]), r"Bag.table: got shape \(4, 2\), expected 3 columns"),
    ],
    ids=["flat", "width", "integers", "lookup_width", "bag_width"],
)
def test_bad_queries_are_refused(query: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_pool(query, 3)


def test_a_contiguous_table_is_not_copied() -> None:
    assert as_pool(Lookup(TABLE, [1]), 3).table is TABLE
    assert as_pool(Bag(TABLE, [1], [0, 1]), 3).table is TABLE


def test_of_a_table_that_must_be_converted_only_the_named_rows_are() -> None:
    pool = as_pool(Lookup(TABLE.astype(np.float16), [3, 3, 0]), 3)
    assert pool.table.tolist() == TABLE[[3, 3, 0]].tolist()
    assert pool.ids.tolist() == [0, 1, 2]


def test_tensors_are_taken_as_they_are() -> None:
    tensor = torch.from_numpy(TABLE.copy())
    assert as_pool(tensor, 3).table.tolist() == TABLE.tolist()
    pool = as_pool(Lookup(tensor, torch.tensor([2])), 3)  # type: ignore[arg-type]
    assert pool.table[pool.ids].tolist() == TABLE[[2]].tolist()


class TableOnDevice:
    """As much of a CUDA tensor as the checks look at."""

    is_cuda, device, ndim, shape = True, "cuda:0", 2, (4, 3)

    def __init__(self, dtype: str = "torch.float32") -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def is_contiguous(self) -> bool:
        return True

    def detach(self) -> TableOnDevice:
        return self


def test_a_table_on_a_device_stays_there_and_is_for_cuda_only() -> None:
    table = TableOnDevice()
    query = Lookup(table, [3])
    assert as_pool(query, 3).table is table
    with pytest.raises(ValueError, match="got a tensor on cuda:0, expected one in host memory for 'cpu'"):
        ItemIndex.build(TABLE).search(query, 1, backend="cpu")
    with pytest.raises(ValueError, match="Lookup.table: got a torch.float16 tensor of shape .* on cuda:0"):
        Lookup(TableOnDevice("torch.float16"), [3])
