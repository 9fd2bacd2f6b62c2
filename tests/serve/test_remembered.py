"""Vectors that are kept are those that were written, whoever shares a place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fuserec.serve.remembered import UserVectors


def vector_of(user: int) -> np.ndarray:
    return np.array([user, -user], dtype=np.float32)


def write(kept: UserVectors, users: np.ndarray) -> None:
    places = kept.room(len(users))
    kept.table[places] = np.array([vector_of(user) for user in users]).reshape(-1, 2)
    kept.keep(users, places)


@given(st.lists(st.lists(st.integers(-1, 40), max_size=8), max_size=12), st.integers(1, 30))
def test_a_vector_is_its_users_own_or_none(batches: list[list[int]], places: int) -> None:
    kept = UserVectors(41, 2, 8, most_bytes=8 * places)
    for batch in batches:
        users = np.array(batch, dtype=np.int64)
        places, known = kept.find(users)
        for user, row, is_known in zip(batch, kept.table[places], known, strict=True):
            assert not is_known or (user >= 0 and row.tolist() == vector_of(user).tolist())
        new = users[users >= 0]
        write(kept, new)


def test_everybody_has_a_place_where_there_is_room() -> None:
    kept = UserVectors(5, 2, 5)
    write(kept, np.arange(5))
    places, known = kept.find(np.array([4, 0]))
    assert known.all()
    assert kept.table[places].tolist() == [[4, -4], [0, 0]]
