"""The kernels around the scans, interpreted, each against a reference of a few lines; outputs are poisoned before."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fuserec.kernels.search import _kernel_finish as finish
from fuserec.kernels.search.keys import EMPTY, unpack

from .conftest import skip_unless_available

Floats = npt.NDArray[np.float32]
LEAST = -(2**31)


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    skip_unless_available("interpret")


def orders_of(scores: Floats) -> npt.NDArray[np.int32]:
    bits = scores.view(np.int32)
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)


def keys_of(scores: Floats, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (orders_of(scores + np.float32(0)).astype(np.int64) << 32) | (0xFFFFFFFF - rows)


def tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def sizes(batch: int, k: int) -> torch.Tensor:
    return torch.tensor([batch, k])


# --- the floor ---


def floors(scores: Floats, rank: int, asked: int | None = None, block: int = 16) -> Floats:
    orders = np.where(np.isneginf(scores), LEAST, orders_of(scores))
    out = torch.full((len(scores),), torch.nan)
    finish.floor_kernel[(len(scores),)](
        out, sizes(len(scores) if asked is None else asked, 1), tensor(orders), scores.shape[1], rank, BLOCK_C=block
    )
    return out.numpy()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 61])
@pytest.mark.parametrize("magnitude", [1e-40, 1.0, 1e30])
def test_the_floor_is_the_rank_th_largest_or_little_less(n: int, magnitude: float) -> None:
    scores = (np.random.default_rng(n).standard_normal((3, n)) * magnitude).astype(np.float32)
    for rank in {1, (n + 1) // 2, n}:
        want = np.sort(scores, axis=1)[:, n - rank]
        got = floors(scores, rank)
        assert (got <= want).all()
        assert (orders_of(want) - orders_of(got) < 256).all(), "eight bits are not told apart, and no more"


def test_the_floor_of_ties_is_their_value() -> None:
    assert floors(np.full((1, 40), 0.5, np.float32), 20).tolist() == [0.5]


def test_there_is_no_floor_where_fewer_blocks_have_a_row() -> None:
    scores = np.full((2, 20), -np.inf, np.float32)
    scores[:, :3] = -7.0
    assert floors(scores, 4).tolist() == [-np.inf, -np.inf]
    assert floors(scores, 3) == pytest.approx(-7.0, rel=2**-14)


def test_a_query_that_nobody_asked_has_no_floor() -> None:
    got = floors(np.ones((3, 5), np.float32), 1, asked=2)
    assert got[:2].tolist() == [1, 1] and np.isnan(got[2])


# --- what may be among the best ---


def pruned(
    upper: Floats,
    reach: Floats,
    count: int,
    k: int,
    excluded: list[int],
    seen: list[int],
    block: int = 16,
) -> set[int]:
    """Return the rows that `prune_kernel` leaves of one query of length 2, whose rows are 0 to n - 1."""
    capacity = len(upper)
    picked, n_picked = torch.full((2, capacity), -2), torch.full((2,), -2, dtype=torch.int32)
    orders = torch.full((2, capacity), 77, dtype=torch.int32)
    keys = torch.full((2, capacity), EMPTY)
    keys[0] = tensor(keys_of(upper, np.arange(capacity)))
    finish.prune_kernel[(2,)](
        picked, n_picked, orders, sizes(1, k), keys, torch.tensor([count, 5], dtype=torch.int32),
        torch.tensor([2.0, 1.0]), tensor(reach),
        torch.tensor([0, len(excluded)]), torch.tensor([*excluded, -1]),
        torch.tensor([0, 1, 1 + len(seen)]), torch.tensor([3, *seen, -1]), torch.tensor([1]),
        capacity, 10, 10, EXCLUDE=bool(excluded), SEEN=bool(seen), BLOCK_C=block,
    )  # fmt: skip
    assert n_picked[1] == -2 and (picked[1] == -2).all(), "a query that nobody asked was written"
    n = int(n_picked[0])
    assert (picked[0, n:] == -2).all(), "more was written than was counted"
    return set(unpack(picked[0, :n].numpy())[0].tolist())


@pytest.mark.parametrize("n", [1, 15, 16, 17, 67])
@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("lists", ["none", "both"])
def test_what_is_left_are_the_rows_that_bounds_do_not_rule_out(n: int, k: int, lists: str) -> None:
    rng = np.random.default_rng(n)
    upper, reach = rng.standard_normal(n).astype(np.float32), rng.random(n).astype(np.float32) / 8
    excluded, seen = (sorted({0, n // 2}), [n - 1]) if lists == "both" else ([], [])
    count = n + 3  # more than there was room for
    kept = np.setdiff1d(np.arange(n), [*excluded, *seen])
    lower = orders_of(upper - 4 * reach)
    threshold = np.sort(lower[kept])[-k] & ~0xFF if len(kept) >= k else LEAST
    want = {int(row) for row in kept if orders_of(upper)[row] >= threshold}
    assert pruned(upper, reach, count, k, excluded, seen) == want


def test_rows_without_a_finite_bound_are_left() -> None:
    upper = np.array([np.inf, 1, 2, 3], np.float32)
    reach = np.array([np.inf, 0, 0, 0], np.float32)
    with np.errstate(invalid="ignore"):
        assert pruned(upper, reach, 4, 2, [], []) == {0, 2, 3}


def test_nothing_is_left_of_nothing() -> None:
    assert pruned(np.ones(4, np.float32), np.ones(4, np.float32), 0, 2, [1], []) == set()


# --- scores ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "dim"), [(1, 16), (15, 48), (17, 128), (33, 1040)])
def test_scores_replace_the_bounds(dtype: torch.dtype, n: int, dim: int) -> None:
    rng = np.random.default_rng(n)
    items = tensor(rng.integers(-3, 4, (50, dim)).astype(np.float32)).to(dtype)
    queries = rng.integers(-3, 4, (3, dim)).astype(np.float32)
    rows = rng.permutation(50)[:n]
    picked = torch.full((3, 40), -2)
    picked[:2, :n] = tensor(keys_of(np.full(n, 9, np.float32), rows))
    counts = torch.tensor([n, 0, 5], dtype=torch.int32)
    finish.rescore_kernel[(3 * 2,)](
        picked, sizes(2, 1), counts, items, tensor(queries), 40, 2, dim, dim, BLOCK_C=16, BLOCK_D=min(dim, 128)
        if dim % 16 == 0 and dim & (dim - 1) == 0 else 32,
    )  # fmt: skip
    got_rows, scores = unpack(picked[0, :n].numpy())
    assert got_rows.tolist() == rows.tolist()
    assert scores.tolist() == (items.float().numpy()[rows] @ queries[0]).tolist()
    assert (picked[0, n:] == -2).all() and (picked[2] == -2).all()
    assert unpack(picked[1, :n].numpy())[1].tolist() == [9.0] * n, "a query without keys was scored"


# --- places ---


def placed(
    scores: Floats,
    k: int,
    columns: int,
    *,
    count: int | None = None,
    capacity: int = 80,
    floor: float = -np.inf,
    magnitude: float = 1.0,
) -> tuple[list[int], list[float], int, int]:
    """Return ids, scores, flags and rows scored of one query, whose row r is item 10 r; a second one is not asked."""
    n = len(scores)
    picked = torch.full((2, capacity), 2**62)  # beyond the last key lies what would be the best of all
    picked[0, :n] = tensor(keys_of(scores, np.arange(n)))
    ids, found = torch.full((2, columns), -2), torch.full((2, columns), torch.nan)
    flags, rescored = torch.full((2,), -2, dtype=torch.int32), torch.full((2,), -2, dtype=torch.int32)
    finish.place_kernel[(2 * 3,)](
        ids, found, flags, rescored, sizes(1, k), picked, torch.tensor([n, 4], dtype=torch.int32),
        torch.tensor([n if count is None else count, 1], dtype=torch.int32), torch.tensor([floor, 0.0]),
        torch.tensor([magnitude, 1.0], dtype=torch.float64), torch.tensor([10.0, 100.0, 0.5], dtype=torch.float64),
        10 * torch.arange(200), capacity, 3, columns, BLOCK_C=16,
    )  # fmt: skip
    assert (ids[1] == -2).all() and flags[1] == -2 and rescored[1] == -2, "a query that nobody asked was written"
    assert (ids[0] != -2).all(), "a column was not written"
    return ids[0].tolist(), found[0].tolist(), int(flags[0]), int(rescored[0])


PROVEN, SOUND = 1, 2


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 79])
@pytest.mark.parametrize("columns", [1, 16, 17, 128])
def test_places_are_those_of_a_sort(n: int, columns: int) -> None:
    scores = np.random.default_rng(n).integers(-4, 4, n).astype(np.float32)  # many ties
    ids, found, flags, rescored = placed(scores, columns, columns)
    order = np.lexsort((np.arange(n), -scores))[:columns]
    tail = columns - len(order)
    assert ids == [10 * int(row) for row in order] + [-1] * tail
    assert found == scores[order].tolist() + [-np.inf] * tail
    assert (flags, rescored) == (PROVEN | SOUND, n)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"floor": 2.0}, PROVEN | SOUND),  # three scores reach it
        ({"floor": 2.5}, SOUND),
        ({"count": 81}, SOUND),  # a key had no room
        ({"count": 80}, PROVEN | SOUND),
        ({"magnitude": 11.0}, SOUND),  # bounds may have overflowed
        ({"magnitude": 100.0}, 0),
        ({"magnitude": 0.25}, PROVEN),
        ({"magnitude": np.nan}, 0),
        ({"floor": np.nan}, SOUND),
    ],
)
def test_the_proof(changes: dict[str, Any], flags: int) -> None:
    ids, found, got, _ = placed(np.array([1, 2, 3, 4], np.float32), 3, 16, **changes)
    assert got == flags
    if flags & SOUND:
        assert ids[:3] == [30, 20, 10]
    else:
        assert ids == [-1] * 16 and np.isnan(found).all()


def test_the_proof_is_for_the_items_asked_and_not_for_the_columns() -> None:
    scores = np.arange(20, dtype=np.float32)
    assert placed(scores, 5, 16, floor=15.0)[2] == PROVEN | SOUND
    assert placed(scores, 6, 16, floor=15.0)[2] == SOUND
