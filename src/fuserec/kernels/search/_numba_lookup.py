"""Who asks, as the search and the user tower take them: all look-ups of a batch of plain requests in one compiled call.

What `serve.users` does list by list with numpy, for requests of which most are: somebody known, or a history, or both.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.contract import NO_ID
from fuserec.kernels._arrays import IntArray
from fuserec.kernels.search._numba_jit import jit

NOBODY: Final = -1


class People(NamedTuple):
    """What is known beforehand, of U users and I items.

    Attributes:
        user_ids: (U,) int64, ascending.
        user_numbers: (U,) int64: the number of each, 0 to U - 1.
        item_ids: (I,) int64, ascending.
        item_rows: (I,) int64: the row of each, 0 to I - 1; networks count from 1.
        stored: (S,) int64 items of all users as networks know them, user after user, oldest first.
        offsets: (U + 1,) int64: those of number `u` are `stored[offsets[u]:offsets[u + 1]]`.
        owners: (P,) int64: whose vector is kept in each place; written to by its owner between two calls.
    """

    user_ids: IntArray
    user_numbers: IntArray
    item_ids: IntArray
    item_rows: IntArray
    stored: IntArray
    offsets: IntArray
    owners: IntArray


class LookedUp(NamedTuple):
    """B users as they were found.

    Attributes:
        numbers: (B,) int64, `NOBODY` for somebody unknown.
        lists: (B,) int64: the list of what each has seen; U, which is empty, for somebody unknown.
        places: (B,) int64: where the vector of each is, or is to be.
        keepers: (B,) int64: whose vector it is, if it may be kept; else `NOBODY`.
        lengths: (B,) int64: how many items the tower has to read; `NOBODY` where the vector is kept.
        rows: (B, L) int64: those items, the newest last, zeros before them.
        offsets: (B + 1,) int64: `ids[offsets[b]:offsets[b + 1]]` may not come back to user `b` beside their list.
        ignored: (B,) int64: ids that the catalogue does not hold.
    """

    numbers: IntArray
    lists: IntArray
    places: IntArray
    keepers: IntArray
    lengths: IntArray
    rows: IntArray
    offsets: IntArray
    ignored: IntArray


def allocate_looked_up(batch: int, longest: int) -> LookedUp:
    """Return room for what is found of B users."""
    numbers, lists, places, keepers, lengths, ignored = np.empty((6, batch), np.int64)
    return LookedUp(
        numbers,
        lists,
        places,
        keepers,
        lengths,
        np.empty((batch, longest), np.int64),
        np.empty(batch + 1, np.int64),
        ignored,
    )


@jit()
def _value_of(ids: IntArray, values: IntArray, wanted: int) -> int:
    """Return the value that belongs to one of the ascending `ids`, `NOBODY` where it is not among them."""
    at = np.searchsorted(ids, wanted)
    return values[at] if at < len(ids) and ids[at] == wanted else NOBODY


@jit()
def look_up(
    people: People, users: IntArray, history: IntArray, history_ends: IntArray, exclude: IntArray,
    exclude_ends: IntArray, found: LookedUp, ids: IntArray,
) -> bool:  # fmt: skip
    """Look up B users, and return whether something is known of every one of them.

    `found` and `ids`, as long as both lists, are written to: what numba returns in arrays takes a call of Python each.
    `users` are B ids. The history of user `b` is `history[history_ends[b]:history_ends[b + 1]]`, and
    likewise what may not come back; `NO_ID` in both is padding.
    """
    batch, n_places, longest = len(users), len(people.owners), found.rows.shape[1]
    numbers, lists, places, keepers, lengths, rows, offsets, ignored = found
    given = np.empty(len(history), np.int64)
    end, fresh, known = 0, 0, True
    offsets[0] = 0
    for b in range(batch):
        ignored[b] = 0
        number = _value_of(people.user_ids, people.user_numbers, users[b])
        count = 0
        for at in range(history_ends[b], history_ends[b + 1]):
            row = _value_of(people.item_ids, people.item_rows, history[at])
            if row != NOBODY:
                given[count] = row + 1
                count += 1
                ids[end] = history[at]
                end += 1
            elif history[at] != NO_ID:
                ignored[b] += 1
        for at in range(exclude_ends[b], exclude_ends[b + 1]):
            if _value_of(people.item_ids, people.item_rows, exclude[at]) != NOBODY:
                ids[end] = exclude[at]
                end += 1
            elif exclude[at] != NO_ID:
                ignored[b] += 1
        offsets[b + 1] = end
        numbers[b] = number
        lists[b] = len(people.offsets) - 1 if number == NOBODY else number
        keepers[b] = NOBODY if count > 0 else number
        lengths[b] = NOBODY
        if keepers[b] != NOBODY:
            places[b] = number % n_places
            if people.owners[places[b]] == number:
                continue
        places[b] = n_places + fresh
        fresh += 1
        items, first = given, 0
        if count == 0 and number != NOBODY:
            items, first = people.stored, people.offsets[number]
            count = people.offsets[number + 1] - first
        known = known and (number != NOBODY or count > 0)
        length = min(count, longest)
        lengths[b] = count
        rows[b, : longest - length] = 0
        for place in range(length):
            rows[b, longest - length + place] = items[first + count - length + place]
    return known
