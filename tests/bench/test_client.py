"""The bench of the client compares like with like."""

import pytest

from bench.client import measure


def test_every_client_is_asked_alike() -> None:
    asked: dict[str, list[int]] = {"stock": [], "fuserec": []}

    def asker(name: str) -> object:
        return lambda user_id: asked[name].append(user_id) or [user_id]

    times = measure({name: asker(name) for name in asked}, calls=20, warm_up=5, users=3)  # type: ignore[misc]
    assert {name: len(each) for name, each in times.items()} == {"stock": 20, "fuserec": 20}
    assert asked["stock"] == asked["fuserec"] and len(asked["stock"]) == 25 and set(asked["stock"]) == {1, 2, 3}


def test_different_answers_end_the_bench() -> None:
    with pytest.raises(RuntimeError, match="different answers for user"):
        measure({"stock": lambda user_id: [1], "fuserec": lambda user_id: [2]}, calls=1, warm_up=0, users=3)
