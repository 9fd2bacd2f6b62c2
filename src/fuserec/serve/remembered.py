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
    """Room for the vectors of some of n users, D float32 each.

    Attributes:
        table: (P, D) float32, the vectors by place.

    Args:
        n_users: How many users there are; they are numbered from 0.
        dim: Length D of a vector.
        most_bytes: Memory that the vectors may take.
    """

    def __init__(self, n_users: int, dim: int, most_bytes: int = MOST_BYTES) -> None:
        places = max(1, min(n_users, most_bytes // (4 * dim)))
        self.table: NDArray[np.float32] = np.zeros((places, dim), dtype=np.float32)
        self._owners = np.full(places, _FREE, dtype=np.int64)

    def find(self, users: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """Return the places of (B,) users in the table, (B,) int64, and whether their vectors are there; -1 is nobody.

        What is in a place may be somebody else's vector.
        """
        places = users % len(self._owners)
        return places, self._owners[places] == users

    def write(self, users: Ids, vectors: NDArray[np.float32]) -> None:
        """Keep the vectors of (B,) users; of those that share a place, and of a user who is there twice, the last."""
        places = users % len(self._owners)
        self._owners[places] = users
        self.table[places] = vectors
