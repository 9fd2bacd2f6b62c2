"""Rules travel as JSON, and what is out of range is refused where it is written down."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.rules import MAX_CATEGORIES, MAX_JSON, NO_RULES, Rules

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    boosts=st.dictionaries(names, st.floats(-1e30, 1e30) | st.integers(-5, 5), max_size=5),
    caps=st.dictionaries(names, st.integers(0, 2**40), max_size=5),
    diversity=st.floats(0, 1),
)
def test_json_and_back(boosts: dict[str, float], caps: dict[str, int], diversity: float) -> None:
    rules = Rules(boosts, caps, diversity)
    assert Rules.from_json(rules.to_json()) == rules
    assert bool(rules) == bool(boosts or caps or diversity)


def test_no_rules_are_nothing() -> None:
    assert not NO_RULES and NO_RULES.to_json() == "" and Rules.from_json("") is NO_RULES
    assert not Rules.from_json("{}")


def test_any_of_the_three_may_be_left_out() -> None:
    assert Rules.from_json('{"caps": {"Drama": 2}}') == Rules(caps={"Drama": 2})


def test_nobody_changes_what_was_checked() -> None:
    given = {"Drama": 1.0}
    rules = Rules(boosts=given)
    given["Drama"] = float("nan")
    assert rules.boosts == {"Drama": 1.0}
    with pytest.raises(TypeError):
        rules.boosts["Drama"] = 2.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boosts": {"a": float("nan")}}, "the boost of 'a' came as nan, expected -1e+30 to 1e+30"),
        ({"boosts": {"a": float("inf")}}, "the boost of 'a' came as inf"),
        ({"boosts": {"a": 2e30}}, "the boost of 'a' came as 2e+30"),
        ({"boosts": {"a": 10**400}}, "the boost of 'a' came as 1000"),
        ({"boosts": {"a": True}}, "the boost of 'a' came as True"),
        ({"boosts": {"a": "1"}}, "the boost of 'a' came as '1'"),
        ({"boosts": {"": 1.0}}, "boosts came as {'': 1.0}, expected categories with a number each"),
        ({"boosts": [1]}, r"boosts came as \[1\]"),
        ({"caps": {"a": -1}}, "the cap of 'a' came as -1, expected a whole number, 0 or more"),
        ({"caps": {"a": 1.0}}, "the cap of 'a' came as 1.0"),
        ({"caps": {"a": True}}, "the cap of 'a' came as True"),
        ({"caps": {str(n): 1 for n in range(MAX_CATEGORIES + 1)}}, "caps came with 101 categories, expected at most"),
        ({"diversity": 1.01}, "diversity came as 1.01, expected 0 to 1"),
        ({"diversity": float("nan")}, "diversity came as nan"),
        ({"diversity": True}, "diversity came as True"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        Rules(**arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "rules holds a JSON list; expected a JSON object"),
        ("{", "rules is not JSON"),
        ('{"cap": {}}', "expected an object with boosts, caps, diversity"),
        ('{"caps": {"a": 1, "a": 2}}', "'a' is there twice"),
        ('{"boosts": {"a": NaN}}', "nan"),
        ('{"boosts": null}', "boosts came as None"),
        ('{"diversity": "much"}', "diversity came as 'much'"),
        ("[" * 10_000, "rules is not JSON"),
        ('{"caps": {"a": ' + "9" * 400 + "}}", "integer beyond 64 bits"),
        (" " * MAX_JSON + "{}", "rules came with 20002 characters, expected at most 20000"),
    ],
)
def test_json_that_is_none_of_ours_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules.from_json(text)


def test_a_diverse_list_has_a_longest() -> None:
    Rules(diversity=0.5).check_k(1_000)
    Rules(caps={"a": 1}).check_k(10_000)
    with pytest.raises(ValueError, match="k came as 1001 with diversity, expected at most 1000"):
        Rules(diversity=0.5).check_k(1_001)


def test_what_travels_is_plain_json() -> None:
    document = json.loads(Rules({"a": 1.5}, {"*": 2}, 0.25).to_json())
    assert document == {"boosts": {"a": 1.5}, "caps": {"*": 2}, "diversity": 0.25}
