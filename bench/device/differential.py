"""Many searches against float64: how many answers are wrong, how many came back otherwise when asked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bench.device.cases import TABLES, Plan, Question, indices, questions
from bench.device.oracle import FAULTS, Oracle
from fuserec.kernels import ItemIndex, TopK

# Index and question to answer: the search under test, or one that is wrong on purpose.
Searcher = Callable[[ItemIndex, Question], TopK]
_REPEATED_EVERY: Final = 8  # searches, and the first of every table


@dataclass
class Count:
    """What a plan came to.

    Attributes:
        queries: That were judged.
        searches: Calls that asked them.
        wrong: Queries with a fault of `FAULTS`.
        faults: Queries by fault.
        repeated: Queries that were asked several times.
        changed: Of these, those that did not come back the same to the bit.
        certified: Queries whose first pass proved the answer.
        rescored: Rows read in full, of all queries.
        rows: Rows of the tables, of all queries.
        errors: Searches that raised, by what they said.
    """

    queries: int = 0
    searches: int = 0
    wrong: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    repeated: int = 0
    changed: int = 0
    certified: int = 0
    rescored: int = 0
    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Nothing was wrong, and something was asked."""
        return self.queries > 0 and not (self.wrong or self.changed or self.errors)

    def cells(self) -> dict[str, Any]:
        """Return it as a row of the results has it."""
        said = "; ".join(f"{count} x {what}" for what, count in (self.faults | self.errors).items() if count)
        asked = max(self.queries, 1)
        return {
            "queries": self.queries,
            "searches": self.searches,
            "wrong": self.wrong,
            "excluded_back": self.faults["excluded"],
            "repeated": self.repeated,
            "changed": self.changed,
            "certified_pct": round(100 * self.certified / asked, 3),
            "repairs": self.queries - self.certified,
            "rescored_rows": round(self.rescored / asked, 1),
            "rescored_pct": round(100 * self.rescored / max(self.rows, 1), 4),
            "sound": self.sound,
            "what": said[:300] or None,
        }


def run(plan: Plan, searcher: Searcher, device: str, *, seed: int = 0, until: float | None = None) -> Count:
    """Ask all questions of a plan, over a table of every kind by turns.

    Args:
        plan: What is asked.
        searcher: What answers.
        device: Where the oracle computes.
        seed: Of tables and questions.
        until: `time.monotonic()` after which nothing more is asked.
    """
    count = Count()
    for at, (name, index) in enumerate(indices(plan, seed)):
        oracle = Oracle(index, device)
        share = -(-plan.queries // len(plan.tables or TABLES))
        for turn, question in enumerate(questions(plan, index, share, seed + at)):
            if until is not None and time.monotonic() > until:
                return count
            times = plan.repeats if turn % _REPEATED_EVERY == 0 else 1
            _ask(count, name, index, question, searcher, oracle, times)
    return count


def _ask(
    count: Count, table: str, index: ItemIndex, question: Question, searcher: Searcher, oracle: Oracle, times: int
) -> None:
    count.searches += 1
    try:
        answer = searcher(index, question)
        again = [searcher(index, question) for _ in range(times - 1)]
    except Exception as error:  # counted, so that one search that raises does not hide what the others do
        said = f"{table}, k {question.k}, batch {question.batch}: {type(error).__name__}: {error}"[:160]
        count.errors[said] = count.errors.get(said, 0) + 1
        return
    verdict = oracle.judge(answer, question.query, question.k, question.kept)
    count.queries += verdict.queries
    count.wrong += verdict.wrong
    for fault, number in verdict.faults.items():
        count.faults[fault] += number
    count.certified += int(answer.certified.sum())
    count.rescored += int(answer.rescored.sum())
    count.rows += index.rows * verdict.queries
    if again:
        count.repeated += verdict.queries
        count.changed += _changed(answer, again)


def _changed(first: TopK, others: list[TopK]) -> int:
    """Return how many queries were not answered with the same bits every time."""
    if any(other.ids.shape != first.ids.shape for other in others):
        return len(first.ids)
    differs = np.zeros(len(first.ids), np.bool_)
    for other in others:
        differs |= (other.ids != first.ids).any(1) | (other.scores.view(np.int32) != first.scores.view(np.int32)).any(1)
    return int(differs.sum())
