"""JSON becomes what was asked for, or is refused with the name of the field."""

from dataclasses import dataclass
from typing import Any

import pytest

from fuserec.records import from_json


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(f"x came as {self.x}")


@dataclass(frozen=True)
class Shape:
    name: str
    points: list[Point]
    tags: dict[str, bool]
    centre: Point | None
    about: Any


GOOD = {
    "name": "s",
    "points": [{"x": 1, "y": 2}, {"x": 3, "y": 0.5}],
    "tags": {"a": True},
    "centre": None,
    "about": [1, "b"],
}


def test_good_value() -> None:
    shape = from_json(Shape, GOOD)
    assert shape == Shape("s", [Point(1, 2.0), Point(3, 0.5)], {"a": True}, None, [1, "b"])
    assert type(shape.points[0].y) is float
    assert from_json(Shape, {**GOOD, "centre": {"x": 0, "y": 0}}).centre == Point(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"name": 1}, "name is a int, expected a str", id="number for text"),
        pytest.param({"points": {}}, "points is a dict, expected a list", id="object for list"),
        pytest.param({"points": [{"x": True, "y": 0}]}, r"points\[0\].x is a bool, expected a int", id="bool for int"),
        pytest.param({"points": [{"x": 1.0, "y": 0}]}, r"points\[0\].x is a float, expected a int", id="float for int"),
        pytest.param({"points": [{"x": 1}]}, r"points\[0\] lacks 'y'", id="field missing, default or not"),
        pytest.param({"points": [{"x": -1, "y": 0}]}, "x came as -1", id="what the dataclass refuses"),
        pytest.param({"tags": {"a": 1}}, "tags.a is a int, expected a bool", id="inside a dict"),
        pytest.param({"centre": []}, "centre is a list, expected a dict", id="inside an optional"),
        pytest.param({"more": 1}, "it has an unknown field 'more'", id="unknown field"),
    ],
)
def test_bad_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Shape, GOOD | change)
