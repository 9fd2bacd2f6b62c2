"""Architecture names and arguments, as they come from a JSON file."""

from __future__ import annotations

import pytest

from fuserec.errors import CheckpointError
from fuserec.models.registry import ARCHITECTURES, build_module
from fuserec.models.two_tower import TwoTower

ARGUMENTS = {"n_users": 2, "n_items": 3, "dim": 4}


def test_builds_by_name() -> None:
    assert isinstance(build_module("two-tower", ARGUMENTS), TwoTower)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="'three-tower'; expected one of " + ", ".join(sorted(ARCHITECTURES))):
        build_module("three-tower", ARGUMENTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"depth": 3}, "unknown depth", id="unknown-field"),
        pytest.param({"dim": "4"}, "dim is '4'; expected int", id="text-for-a-number"),
        pytest.param({"dim": 4.0}, "dim is 4.0; expected int", id="float-for-an-int"),
        pytest.param({"dim": True}, "dim is True; expected int", id="bool-for-an-int"),
        pytest.param({"dim": 5}, "expected a multiple of n_heads", id="checks-of-the-config"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_module("two-tower", ARGUMENTS | change)


def test_missing_arguments_are_named() -> None:
    with pytest.raises(CheckpointError, match="lack n_users"):
        build_module("two-tower", {"n_items": 3})


def test_an_int_is_a_float() -> None:
    build_module("two-tower", ARGUMENTS | {"dropout": 0})
