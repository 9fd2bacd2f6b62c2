"""The compiled loops of the rules: filling a list under caps, and picking unlike items.

An item of the boosted order may only be taken when no item that was not fetched can come before it. `Unseen` says, for
each group of items, where the ones that were not fetched can begin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuserec.kernels._arrays import BoolArray, DoubleArray, IntArray
from fuserec.kernels.search._numba_jit import jit


class Groups(NamedTuple):
    """The categories of group `g` are `categories[ends[g]:ends[g + 1]]`; `ends` is (G + 1,), both int64."""

    ends: IntArray
    categories: IntArray


class Boosted(NamedTuple):
    """n items in boosted order.

    Attributes:
        scores: (n,) float64, descending.
        orders: (n,) float64: in the order before boosts, items come by descending `orders`, then by ascending id.
        ids: (n,) int64.
        groups: (n,) int64.
    """

    scores: DoubleArray
    orders: DoubleArray
    ids: IntArray
    groups: IntArray


class Unseen(NamedTuple):
    """Bounds of the items of G groups that were not fetched.

    Attributes:
        descending: Some groups by descending `limits`; of the others every item was fetched, or none is wanted.
        limits: (G,) float64: no such item has a higher boosted score.
        orders: (G,) float64, see `Boosted`: such an item comes after an item of this order and `ids`.
        ids: (G,) int64.
    """

    descending: IntArray
    limits: DoubleArray
    orders: DoubleArray
    ids: IntArray


@jit()
def is_open(groups: Groups, group: int, left: IntArray) -> bool:
    """Return whether every category of a group has room; `left` is (C,) int64, negative for no cap."""
    is_full = False
    for at in range(groups.ends[group], groups.ends[group + 1]):
        is_full |= left[groups.categories[at]] == 0
    return not is_full


@jit()
def open_groups(groups: Groups, left: IntArray) -> BoolArray:
    """Return for each of the groups, (G,) bool, whether every category of it has room."""
    found = np.empty(len(groups.ends) - 1, np.bool_)
    for group in range(len(found)):
        found[group] = is_open(groups, group, left)
    return found


@jit()
def keep_groups(item_groups: NDArray[np.int32], is_kept: BoolArray, mask: BoolArray) -> None:
    """Unset (N,) bool of each item whose group, (N,) int32, is not kept, (G,) bool."""
    for item in range(len(mask)):
        mask[item] &= is_kept[item_groups[item]]


@jit()
def take(groups: Groups, group: int, left: IntArray) -> None:
    """Count an item of a group in its categories."""
    for at in range(groups.ends[group], groups.ends[group + 1]):
        category = groups.categories[at]
        if left[category] > 0:
            left[category] -= 1


@jit()
def _highest(at: int, groups: Groups, unseen: Unseen, left: IntArray) -> int:
    """Return the place of the first open group in `unseen.descending`, from a place on; its length if there is none."""
    while at < len(unseen.descending) and not is_open(groups, unseen.descending[at], left):
        at += 1
    return at


@jit()
def _is_sure(boosted: Boosted, item: int, at: int, groups: Groups, unseen: Unseen, left: IntArray) -> bool:
    """Return whether an item comes before every unseen one, `at` being the place of the highest open group."""
    score = boosted.scores[item]
    for place in range(at, len(unseen.descending)):
        group = unseen.descending[place]
        if unseen.limits[group] < score:
            return True
        if not is_open(groups, group, left):
            continue
        if unseen.limits[group] > score:
            return False
        order = unseen.orders[group]
        if boosted.orders[item] < order or (boosted.orders[item] == order and boosted.ids[item] > unseen.ids[group]):
            return False
    return True


@jit()
def count_sure(boosted: Boosted, groups: Groups, unseen: Unseen, left: IntArray) -> int:
    """Return how many items from the top come before every unseen item of a group that is open."""
    at = _highest(0, groups, unseen, left)
    for item in range(len(boosted.scores)):
        if not _is_sure(boosted, item, at, groups, unseen, left):
            return item
    return len(boosted.scores)


@jit()
def fill(
    boosted: Boosted, groups: Groups, unseen: Unseen, left: IntArray, taken: BoolArray, picked: IntArray, count: int
) -> int:
    """Fill `picked` (k,), `count` of which are there, with the first items for which the caps leave room.

    It ends at the first item that an unseen one could precede; `taken` (n,) and `left` are brought up to date.

    Returns:
        How many are picked.
    """
    at = 0  # a full category stays full, so that the highest open group is never before an earlier one
    for item in range(len(boosted.scores)):
        if count == len(picked):
            break
        if taken[item] or not is_open(groups, boosted.groups[item], left):
            continue
        at = _highest(at, groups, unseen, left)
        if not _is_sure(boosted, item, at, groups, unseen, left):
            break
        picked[count], taken[item] = item, True
        count += 1
        take(groups, boosted.groups[item], left)
    return count


@jit(fastmath=frozenset({"reassoc", "contract"}))
def _dot(one: DoubleArray, other: DoubleArray) -> float:
    """Return the product of two vectors, which the same pair always has to the bit."""
    total = 0.0
    for at in range(len(one)):
        total += one[at] * other[at]
    return total


@jit()
def _sink(heap: IntArray, size: int, at: int, marginals: DoubleArray) -> None:
    """Let the item at a place of the heap sink below those with a higher marginal, or the same and a lower number."""
    item = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _is_above(heap[child + 1], heap[child], marginals):
            child += 1
        if not _is_above(heap[child], item, marginals):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


@jit()
def _is_above(one: int, other: int, marginals: DoubleArray) -> bool:
    return marginals[one] > marginals[other] or (marginals[one] == marginals[other] and one < other)


@jit()
def pick_diverse(
    scores: DoubleArray, directions: DoubleArray, item_groups: IntArray, groups: Groups, left: IntArray,
    diversity: float, taken: BoolArray, picked: IntArray,
) -> int:  # fmt: skip
    """Fill `picked` (k,) by maximal marginal relevance (Carbonell and Goldstein, 1998), as far as the caps allow.

    A marginal only falls while items are picked, for the largest cosine only rises. So an old one is a bound, and an
    item is compared with what was picked since only when its bound is the highest of all (Minoux, 1978, "Accelerated
    greedy algorithms").

    Args:
        scores: (n,) boosted scores, descending.
        directions: (n, D) float64 of unit length.
        item_groups: (n,) int64.
        groups: Their categories.
        left: (C,) places that the caps leave; brought up to date.
        diversity: 1 - lambda.
        taken: (n,) bool; brought up to date.
        picked: (k,) int64: the places of the items, in the order of picking.

    Returns:
        How many are picked.
    """
    n = len(scores)
    first = 0
    while first < n and not is_open(groups, item_groups[first], left):
        first += 1
    if first == n or len(picked) == 0:
        return 0
    picked[0], taken[first], count = first, True, 1
    take(groups, item_groups[first], left)
    lowest, spread = scores[n - 1], scores[0] - scores[n - 1]
    relevance, similarity, marginals = np.zeros(n), np.empty(n), np.empty(n)
    compared = np.ones(n, np.int64)  # with so many of those picked
    heap, size = np.empty(n, np.int64), 0
    for item in range(n):
        if spread > 0:
            relevance[item] = (scores[item] - lowest) / spread
        similarity[item] = _dot(directions[item], directions[first])
        marginals[item] = (1.0 - diversity) * relevance[item] - diversity * similarity[item]
        if not taken[item]:
            heap[size] = item
            size += 1
    for at in range(size // 2 - 1, -1, -1):
        _sink(heap, size, at, marginals)
    while count < len(picked) and size > 0:
        item = heap[0]
        if is_open(groups, item_groups[item], left):
            if compared[item] < count:
                for other in range(compared[item], count):
                    similarity[item] = max(similarity[item], _dot(directions[item], directions[picked[other]]))
                compared[item] = count
                marginals[item] = (1.0 - diversity) * relevance[item] - diversity * similarity[item]
                _sink(heap, size, 0, marginals)
                continue
            picked[count], taken[item] = item, True
            count += 1
            take(groups, item_groups[item], left)
        size -= 1
        heap[0] = heap[size]
        _sink(heap, size, 0, marginals)
    return count
