"""The differential run passes a search that is right, and catches each way of being wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bench.device import differential
from bench.device.cases import Plan, Question, full_plans, rehearsal_plans
from bench.device.oracle import FAULTS
from fuserec.kernels import ItemIndex, TopK

PLAN = Plan(203, 16, filters="exclude", queries=60)


def right(index: ItemIndex, question: Question) -> TopK:
    return index.search(question.query, question.k, exclude=question.exclude, allow=question.allow, backend="reference")


def changed(answer: TopK, column: int, ids: np.ndarray) -> TopK:
    """Put other ids at one place of every answer that has it."""
    answer.ids[:, column] = np.where(answer.ids[:, column] >= 0, ids, answer.ids[:, column])
    return answer


def excluded_back(index: ItemIndex, question: Question) -> TopK:
    answer = right(index, question)
    return changed(answer, 0, np.array([ids[0] if len(ids) else -1 for ids in question.exclude]))


def wrong_id(index: ItemIndex, question: Question) -> TopK:
    """The worst item that may be returned, in the place of the best."""
    answer = right(index, question)
    everything = index.search(
        question.query, index.rows, exclude=question.exclude, allow=question.allow, backend="reference"
    ).ids
    last = (everything >= 0).sum(1) - 1
    return changed(answer, 0, everything[np.arange(len(last)), last])


def swapped(index: ItemIndex, question: Question) -> TopK:
    """The ids of the best and the last, with the scores left where they were."""
    answer = right(index, question)
    last = np.maximum((answer.ids >= 0).sum(1) - 1, 0)
    every = np.arange(len(last))
    answer.ids[every, 0], answer.ids[every, last] = answer.ids[every, last], answer.ids[every, 0].copy()
    return answer


def swapped_tie(index: ItemIndex, question: Question) -> TopK:
    answer = right(index, question)
    for ids, scores in zip(answer.ids, answer.scores, strict=True):
        for at in np.flatnonzero((scores[1:] == scores[:-1]) & (ids[1:] >= 0)):
            ids[at], ids[at + 1] = ids[at + 1], ids[at]
            break
    return answer


def wrong_tie(index: ItemIndex, question: Question) -> TopK:
    """Of items that tie at the end of the list, the one with the higher id."""
    full = right(index, replace(question, k=index.rows))
    answer = right(index, question)
    k = answer.ids.shape[1]
    for b, (ids, scores) in enumerate(zip(full.ids, full.scores, strict=True)):
        if k < len(ids) and ids[k] >= 0 and scores[k] == scores[k - 1]:
            answer.ids[b, -1] = ids[k]
    return answer


def twice(index: ItemIndex, question: Question) -> TopK:
    answer = right(index, question)
    if answer.ids.shape[1] > 1:
        answer.ids[:, 1], answer.scores[:, 1] = answer.ids[:, 0], answer.scores[:, 0]
    return answer


def short(index: ItemIndex, question: Question) -> TopK:
    """An item less than there are."""
    answer = right(index, question)
    answer.ids[:, -1], answer.scores[:, -1] = -1, -np.inf
    return answer


def off(index: ItemIndex, question: Question) -> TopK:
    answer = right(index, question)
    return answer._replace(scores=answer.scores * np.float32(1 + 1e-3))


def half_precision(index: ItemIndex, question: Question) -> TopK:
    """The items as float16 would have them: what a search that is not exact returns."""
    coarse = ItemIndex.build(index.embeddings.astype(np.float16), index.ids, metric=index.metric)
    return right(coarse, question)


def nan(index: ItemIndex, question: Question) -> TopK:
    answer = right(index, question)
    answer.scores[:, 0] = np.nan
    return answer


WRONG: dict[str, tuple[Callable[[ItemIndex, Question], TopK], str]] = {
    "excluded_back": (excluded_back, "excluded"),
    "wrong_id": (wrong_id, "left_out"),
    "swapped": (swapped, "worse_first"),
    "swapped_tie": (swapped_tie, "order"),
    "wrong_tie": (wrong_tie, "tie"),
    "twice": (twice, "unknown_id"),
    "short": (short, "unknown_id"),
    "off": (off, "score"),
    "nan": (nan, "form"),
}


def test_a_right_search_passes_every_plan() -> None:
    for plan in rehearsal_plans():
        found = differential.run(plan, right, "cpu")
        assert found.sound, (plan.name, found.cells())
        assert plan.queries <= found.queries < 2 * plan.queries
        assert (found.repeated > 0) == (plan.repeats > 1), "each plan is asked as often as it says"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_search_is_caught(name: str) -> None:
    searcher, fault = WRONG[name]
    found = differential.run(PLAN, searcher, "cpu")
    assert not found.sound
    assert found.faults[fault] > 0, found.faults


def test_scores_of_a_coarser_table_are_caught() -> None:
    # Where scores spread, that is beyond the bound; where all rows are small integers, nothing is lost.
    found = differential.run(Plan(203, 16, queries=60), half_precision, "cpu")
    assert found.faults["score"] > 0


def test_an_answer_that_changes_is_caught() -> None:
    calls = iter(range(10**9))

    def unsteady(index: ItemIndex, question: Question) -> TopK:
        answer = right(index, question)
        if next(calls) % PLAN.repeats == 7:  # the last bit of one score
            answer.scores[0, 0] = np.nextafter(answer.scores[0, 0], np.float32(np.inf))
        return answer

    found = differential.run(PLAN, unsteady, "cpu")
    assert found.changed > 0 and not found.sound


def test_a_search_that_raises_is_counted_with_what_it_said() -> None:
    def broken(index: ItemIndex, question: Question) -> TopK:
        raise RuntimeError("an illegal memory access was encountered")

    found = differential.run(PLAN, broken, "cpu")
    assert not found.sound and found.queries == 0
    assert "illegal memory access" in found.cells()["what"]


def test_a_run_that_asked_nothing_is_not_sound() -> None:
    assert not differential.run(PLAN, right, "cpu", until=0.0).sound


def test_the_full_run_is_a_million_queries_of_every_kind() -> None:
    plans = full_plans()
    assert sum(plan.queries for plan in plans) >= 1_000_000
    assert len({plan.name for plan in plans}) == len(plans)
    assert {plan.kind for plan in plans} == {"dense", "lookup", "bag", "weighted"}
    assert {plan.filters for plan in plans} == {"none", "exclude", "set", "allow", "allow_each", "both", "nearly_all"}
    assert {plan.metric for plan in plans} == {"dot", "cosine"} and {plan.codes for plan in plans} == {"int8", "none"}


def test_every_fault_has_a_search_that_shows_it() -> None:
    shown = {fault for _, fault in WRONG.values()}
    assert shown == set(FAULTS)
