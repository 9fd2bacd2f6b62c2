"""Vectors of users, kept once they were computed.

What the user tower makes of a known user and their stored history is the same at every call, to the last bit (see
`fuserec.serve.padding`), for as long as the bundle is served. A direct-mapped cache has a place for each of them, or
for as many as the memory allows, in which case users who share a place drive each other out.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
MOST_BYTES: Final = 64 * 2**20
_FREE: Final = -2  # nobody's number, not even that of nobody


class UserVectors:
    """Room for the vectors of some of n users, and for those of the batch at hand, D float32 each.

    Attributes:
        table: (P + room, D) float32, the vectors by place.
        owners: (P,) int64: whose vector is kept in each place.

    Args:
        n_users: How many users there are; they are numbered from 0.
        dim: Length D of a vector.
        room: Most users of a batch.
        most_bytes: Memory that the vectors that are kept may take.
    """

    def __init__(self, n_users: int, dim: int, room: int, most_bytes: int = MOST_BYTES) -> None:
        places = max(1, min(n_users, most_bytes // (4 * dim)))
        self.table: NDArray[np.float32] = np.zeros((places + room, dim), dtype=np.float32)
        self.owners: Ids = np.full(places, _FREE, dtype=np.int64)

    def find(self, users: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """Return the places of (B,) users in the table, (B,) int64, and whether their vectors are there; -1 is nobody.

        What is in a place may be somebody else's vector.
        """
        places = users % len(self.owners)
        return places, self.owners[places] == users

    def room(self, n: int) -> Ids:
        """Return the places for n vectors of the batch at hand, (n,) int64; they are free again for the next one."""
        return np.arange(len(self.owners), len(self.owners) + n)

    def keep(self, users: Ids, places: Ids) -> Ids:
        """Keep the vectors in the places of some (B,) users, and return where; of those who share one, the last."""
        owned = users % len(self.owners)
        self.owners[owned] = users
        self.table[owned] = self.table[places]
        return owned
