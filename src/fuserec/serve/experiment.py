"""Another version beside the served one, as `traffic.json` says: as its shadow, or for a share of the users.

The front door looks at the file once a second, in a thread that also opens and verifies the candidate, so that nobody
waits for it. A candidate that cannot be opened, or that fails, is named in the log once; the served version goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID, RECOMMEND
from fuserec.manifest import bundle_folder
from fuserec.serve import telemetry as names
from fuserec.serve.pipeline import Answer, Pipeline
from fuserec.serve.plain import PlainAnswers, PlainBatch
from fuserec.serve.query import Query
from fuserec.serve.tally import Tally
from fuserec.serve.telemetry import Telemetry
from fuserec.traffic import AB, Experiment, Traffic

logger = logging.getLogger(__name__)

# Rows that wait for the shadow; with more of them it is behind, and it only samples.
SHADOW_QUEUE: Final = 256
# Rows that it answers at once: fewer than a batch, so that it never holds the interpreter for long.
_SHADOW_BATCH: Final = 8


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the share of items that two lists have in common, 0 to 1, whatever their order; `NO_ID` is none."""
    first, second = set(one.tolist()) - {NO_ID}, set(other.tolist()) - {NO_ID}
    return len(first & second) / max(len(first), len(second), 1) if first or second else 1.0


@dataclass(frozen=True)
class _Trial:
    """A candidate that is open. `telemetry` counts what it answers in an A/B experiment."""

    experiment: Experiment
    pipeline: Pipeline
    telemetry: Telemetry


@dataclass(frozen=True)
class _Shadowed:
    """A row that the shadow is to answer: `item_ids` (k,) is what its caller got."""

    trial: _Trial
    query: Query
    item_ids: NDArray[np.int64]


class Experiments:
    """Answers as the served version, and as the candidate where there is one.

    Args:
        bundle: What is served, in its repository.
        served: The pipeline over it.
        tally: Where the experiment's own numbers go.
        telemetry: Counts what the served version answers.
        open_candidate: Opens and verifies a bundle.
        on_change: Told the fields of the experiment, `state` and `reason`, whenever they change.
        every_s: Seconds between two looks at `traffic.json`.
    """

    def __init__(
        self,
        bundle: Path,
        served: Pipeline,
        tally: Tally,
        telemetry: Telemetry,
        *,
        open_candidate: Callable[[Path], Pipeline] = Pipeline.open,
        on_change: Callable[[dict[str, object]], object] = lambda what: None,
        every_s: float = 1.0,
    ) -> None:
        self._repository, self._version = bundle.parents[1], int(bundle.name)
        self._served = served
        self._tally = tally
        self._telemetry = telemetry
        self._open = open_candidate
        self._on_change = on_change
        self._every_s = every_s
        self._trial: _Trial | None = None
        self._refused: Experiment | None = None
        self._complaint = ""
        self._stop = threading.Event()
        self._waiting: queue.Queue[_Shadowed] = queue.Queue(SHADOW_QUEUE)
        self._threads = [
            threading.Thread(target=run, name=f"fuserec-{name}", daemon=True)
            for name, run in (("experiment", self._keep_following), ("shadow", self._keep_shadowing))
        ]

    def start(self) -> None:
        """Begin to follow `traffic.json`."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the experiment and the threads; what waits for the shadow is left."""
        self._stop.set()
        self._trial = None
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    @property
    def running(self) -> Experiment | None:
        """The experiment whose candidate is open."""
        trial = self._trial
        return trial.experiment if trial else None

    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer B queries; the callers' view of `Pipeline.recommend`."""
        trial = self._trial  # it may end meanwhile
        if trial is None:
            return self._as_served(queries)
        taken = trial.experiment.takes(np.array([query.user_id for query in queries], dtype=np.int64))
        taken &= np.array([trial.pipeline.reads_text or not query.text for query in queries])
        if trial.experiment.kind == AB:
            return self._split(trial, queries, taken)
        answers = self._as_served(queries)
        for row in np.flatnonzero(taken).tolist():
            self._shadow_later(trial, queries[row], answers[row])
        return answers

    def recommend_plain(self, asked: PlainBatch) -> PlainAnswers | None:
        """Answer B plain requests; None while something is tried, and as `Pipeline.recommend_plain`."""
        if self._trial is not None:
            return None
        answers = self._served.recommend_plain(asked)
        if answers is not None:
            self._telemetry.answered(len(asked.ks), 0, sum(answers.ignored))
        return answers

    def _as_served(self, queries: Sequence[Query]) -> list[Answer]:
        answers = self._served.recommend(queries)
        _count(self._telemetry, answers)
        return answers

    def _split(self, trial: _Trial, queries: Sequence[Query], taken: NDArray[np.bool_]) -> list[Answer]:
        """Answer the rows that are `taken` with the candidate and the others as served."""
        answers: dict[int, Answer] = {}
        rows = np.flatnonzero(taken).tolist()
        if rows:
            with self._telemetry.elsewhere():
                answers |= zip(rows, self._as_tried(trial, [queries[row] for row in rows]), strict=False)
        if left := [row for row in range(len(queries)) if row not in answers]:
            answers |= zip(left, self._as_served([queries[row] for row in left]), strict=True)
        for answer in answers.values():
            self._tally.number(names.AB_ROWS, str(answer.version)).add()
        return [answers[row] for row in range(len(queries))]

    def _as_tried(self, trial: _Trial, queries: Sequence[Query]) -> list[Answer]:
        """Answer with the candidate; with nothing where it fails, which ends the experiment."""
        try:
            with trial.telemetry.executing():
                answers = trial.pipeline.recommend(queries)
        except Exception:  # whatever is wrong with a candidate, its callers get the served version's answer
            self._end(trial)
            return []
        _count(trial.telemetry, answers)
        trial.telemetry.executed()
        return answers

    def _shadow_later(self, trial: _Trial, query: Query, answer: Answer) -> None:
        # The arrays may be views of what the server takes back once the request is answered.
        kept = dataclasses.replace(
            query, history=query.history.copy(), exclude=query.exclude.copy(), allow=query.allow.copy()
        )
        try:
            self._waiting.put_nowait(_Shadowed(trial, kept, answer.item_ids.copy()))
        except queue.Full:
            # What it answers is a sample.
            pair = str(self._version), str(trial.experiment.version)
            self._tally.number(names.SHADOW_DROPPED, *pair).add()

    def _keep_shadowing(self) -> None:
        import numba

        numba.set_num_threads(1)  # of this thread's searches; the served ones keep theirs
        while not self._stop.is_set():
            try:
                batch = [self._waiting.get(timeout=0.2)]
            except queue.Empty:
                continue
            while len(batch) < _SHADOW_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            trial = self._trial
            if trial is not None and (rows := [row for row in batch if row.trial is trial]):
                self._shadow(trial, rows)

    def _shadow(self, trial: _Trial, rows: Sequence[_Shadowed]) -> None:
        """Answer rows with the candidate, for nobody but the numbers."""
        began = time.perf_counter()
        try:
            answers = trial.pipeline.recommend([row.query for row in rows])
        except Exception:
            self._end(trial)
            return
        took_s = time.perf_counter() - began
        pair = str(self._version), str(trial.experiment.version)
        common = sum(overlap(row.item_ids, answer.item_ids) for row, answer in zip(rows, answers, strict=True))
        self._tally.number(names.SHADOW_OVERLAP, *pair).add(common)
        self._tally.number(names.SHADOW_ROWS, *pair).add(len(rows))
        self._tally.number(names.SHADOW_SECONDS, *pair).add(took_s)

    def _end(self, trial: _Trial) -> None:
        logger.exception("version %d failed; its experiment ends here", trial.experiment.version)
        self._refused = trial.experiment
        self._trial = None
        self._tell(trial.experiment, "failed", "it failed in a call; the log of the server says how")

    def _keep_following(self) -> None:
        while not self._stop.wait(self._every_s):
            self.follow()

    def follow(self) -> None:
        """Do once what `traffic.json` says."""
        try:
            traffic = Traffic.read(self._repository)
            is_mine = int(traffic.bundle(self._repository).name) == self._version
        except Exception as error:  # whatever lies there, what is served goes on
            if str(error) != self._complaint:
                logger.warning("the experiment stays as it is: %s", error)
            self._complaint = str(error)
            return
        self._complaint = ""
        wanted = traffic.experiment if is_mine else None
        if wanted is None or wanted.version == self._version:
            if self._trial is not None:
                logger.info("the experiment with version %d is over", self._trial.experiment.version)
            self._trial = self._refused = None
        elif wanted not in (self.running, self._refused):
            self._begin(wanted)

    def _begin(self, wanted: Experiment) -> None:
        before, self._trial = self._trial, None
        self._tell(wanted, "opening")
        if before is not None and (before.experiment.kind, before.experiment.version) == (wanted.kind, wanted.version):
            self._trial = dataclasses.replace(before, experiment=wanted)
            self._tell(wanted, "running")
            return
        try:
            pipeline = self._open(bundle_folder(self._repository, wanted.version))
            pipeline.warm_up()
        except Exception as error:  # whatever is wrong with a candidate, serving goes on
            logger.error("version %d cannot be tried: %s", wanted.version, error)
            self._refused = wanted
            self._tell(wanted, "refused", str(error)[:1000])
            return
        telemetry = Telemetry(self._tally, RECOMMEND, wanted.version, names.STAGES[:-1])
        if wanted.kind == AB:
            pipeline.watcher = telemetry
        self._trial = _Trial(wanted, pipeline, telemetry)
        self._tell(wanted, "running")
        logger.info("version %d is tried (%s, %g of the users)", wanted.version, wanted.kind, wanted.share)

    def _tell(self, experiment: Experiment, state: str, reason: str = "") -> None:
        self._on_change({**dataclasses.asdict(experiment), "state": state, "reason": reason})


def _count(telemetry: Telemetry, answers: Sequence[Answer]) -> None:
    fallback = sum(answer.fallback for answer in answers)
    telemetry.answered(len(answers), fallback, sum(answer.ignored for answer in answers))
