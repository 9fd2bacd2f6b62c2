"""Plain requests, one row each: somebody known, a history, items to leave out, and nothing else.

They are nearly all that a service is asked. With the caches cold between two requests each call of numpy costs 3 to
10 us, and a request by way of `Query` makes more than a hundred; so these go from the tensors to the compiled look-up
and search. The answers are those of `Pipeline.recommend`, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fuserec import contract
from fuserec.serve.users import NO_IDS, Ids

_REQUIRED: Final = (contract.USER_ID, contract.K)
_LISTS: Final = {contract.HISTORY: contract.MAX_HISTORY, contract.EXCLUDE: contract.MAX_EXCLUDE}
_NOTHING: Final = NO_IDS[None]


@dataclass(frozen=True, slots=True)
class PlainBatch:
    """B plain requests.

    Attributes:
        users: (B,) int64 ids.
        ks: How many items each wants.
        history: (H,) int64 item ids, request after request, oldest first; `NO_ID` is padding, here and below.
        history_ends: (B + 1,) int64: those of request `b` are `history[history_ends[b]:history_ends[b + 1]]`.
        exclude: (E,) int64 item ids that must not come back.
        exclude_ends: (B + 1,) int64, likewise.
    """

    users: Ids
    ks: list[int]
    history: Ids
    history_ends: Ids
    exclude: Ids
    exclude_ends: Ids


@dataclass(frozen=True, slots=True)
class PlainAnswers:
    """The answers to B plain requests.

    Attributes:
        item_ids: (B, k) int64, k being the largest that was asked for; the tail is `NO_ID`.
        scores: (B, k) float32; there, -inf.
        ignored: Ids in each that the catalogue does not hold.
    """

    item_ids: Ids
    scores: NDArray[np.float32]
    ignored: list[int]


def read_plain(requests: Sequence[Sequence[Any]]) -> PlainBatch | None:
    """Read the input tensors of requests; None unless all are plain and sound, for the way of all others to say why."""
    rows = []
    for tensors in requests:
        row = _plain_row(tensors)
        if row is None:
            return None
        rows.append(row)
    if len(rows) == 1:  # as most batches are at low load
        user, k, history, exclude = rows[0]
        return PlainBatch(user, [k], history, _ends(history), exclude, _ends(exclude))
    users, ks, histories, excludes = zip(*rows, strict=True)
    return PlainBatch(np.concatenate(users), list(ks), *_joined(histories), *_joined(excludes))


def _plain_row(tensors: Sequence[Any]) -> tuple[Ids, int, Ids, Ids] | None:
    if len(tensors) > len(_REQUIRED) + len(_LISTS):
        return None
    values = {tensor.name(): tensor.as_numpy() for tensor in tensors}
    user, k = (values.pop(name, None) for name in _REQUIRED)
    if user is None or k is None or user.shape != (1, 1) or k.shape != (1, 1):
        return None
    for name, value in values.items():
        most = _LISTS.get(name)
        if most is None or value.ndim != 2 or value.shape[0] != 1 or value.shape[1] > most:
            return None
    wanted = int(k[0, 0])
    if not 1 <= wanted <= contract.MAX_K:
        return None
    history, exclude = (values.get(name, _NOTHING)[0] for name in _LISTS)
    return user[0], wanted, history, exclude


def _ends(values: Ids) -> Ids:
    return np.array((0, len(values)), dtype=np.int64)


def _joined(lists: Sequence[Ids]) -> tuple[Ids, Ids]:
    ends = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(values) for values in lists], out=ends[1:])
    return np.concatenate(lists), ends
