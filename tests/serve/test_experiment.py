"""Who answers whom while a version is tried, what is counted of it, and that a bad candidate harms nobody."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fuserec.contract import NO_ID
from fuserec.errors import BundleError
from fuserec.serve.experiment import SHADOW_QUEUE, Experiments, overlap
from fuserec.serve.pipeline import Answer
from fuserec.serve.query import Query
from fuserec.serve.tally import Tally
from fuserec.serve.telemetry import STAGES, Nobody, Telemetry
from fuserec.serve.users import NO_IDS
from fuserec.traffic import AB, SHADOW, Experiment, Traffic
from tests.waiting import wait_until

QUERIES = [Query(user, NO_IDS, NO_IDS, 2) for user in range(40)]


class FakePipeline:
    """Recommends items that tell its version; `text` is refused by one that reads none."""

    def __init__(self, version: int, *, reads_text: bool = False) -> None:
        self.version = version
        self.reads_text = reads_text
        self.watcher: object = Nobody()
        self.asked: list[int] = []
        self.broken = False
        self.go = threading.Event()
        self.go.set()

    def warm_up(self) -> None:
        pass

    def twin(self) -> FakePipeline:
        return self

    def recommend(self, queries: Sequence[Query], check: object = None) -> list[Answer]:
        assert self.go.wait(30), "nobody let the pipeline go on"
        if self.broken:
            raise RuntimeError("broken")
        assert self.reads_text or not any(query.text for query in queries), "a text for one that reads none"
        self.asked += [query.user_id for query in queries]
        # One item in common with other versions, one of its own.
        ids = np.array([7, 100 + self.version])
        return [Answer(ids, np.ones(2, np.float32), False, 1, self.version) for _ in queries]


class Trying:
    """Experiments over a folder that looks like a repository with versions 1 to 3, of which 1 is served."""

    def __init__(self, repository: Path) -> None:
        for version in (1, 2, 3):
            bundle = repository / "recommend" / str(version)
            bundle.mkdir(parents=True)
            (bundle / "manifest.json").write_text("{}")
        self.repository = repository
        self.tally = Tally()
        self.served, self.candidate = FakePipeline(1, reads_text=True), FakePipeline(2)
        self.opened: list[int] = []
        self.cannot_open = False
        self.experiments = Experiments(
            repository / "recommend" / "1",
            self.served,  # type: ignore[arg-type]
            self.tally,
            Telemetry(self.tally, "recommend", 1, STAGES[:-1]),
            open_candidate=self._open,  # type: ignore[arg-type]
        )

    def _open(self, bundle: Path) -> FakePipeline:
        self.opened.append(int(bundle.name))
        if self.cannot_open:
            raise BundleError("damaged")
        return self.candidate

    def say(self, kind: str | None, share: float = 1.0, version: int = 2, serve: int = 1) -> None:
        Traffic(serve, None if kind is None else Experiment(kind, version, share)).write(self.repository)
        self.experiments.follow()

    def versions(self, queries: Sequence[Query] = QUERIES) -> list[int]:
        return [answer.version for answer in self.experiments.recommend(queries)]

    def counted(self) -> dict[str, float]:
        return {
            " ".join([sample.name, *(value for _, value in sample.labels)]): sample.value
            for sample in self.tally.samples()
        }


@pytest.fixture
def trying(tmp_path: Path) -> Iterator[Trying]:
    trying = Trying(tmp_path)
    yield trying
    trying.candidate.go.set()
    trying.experiments.stop()


def test_overlap() -> None:
    def ids(*values: int) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    assert overlap(ids(1, 2, 3, 4), ids(4, 3, 9, 8)) == 0.5
    assert overlap(ids(1, 2, NO_ID), ids(2, 1, NO_ID)) == 1.0
    assert overlap(ids(1, NO_ID), ids(1, 2)) == 0.5
    assert overlap(ids(NO_ID), ids(NO_ID)) == 1.0
    assert overlap(ids(NO_ID), ids(1)) == 0.0


def test_nothing_is_tried_until_it_is_said(trying: Trying) -> None:
    assert trying.versions() == [1] * 40
    trying.experiments.follow()
    assert trying.versions() == [1] * 40 and trying.opened == []


def test_ab_answers_its_users_and_no_others(trying: Trying) -> None:
    trying.say(AB, share=0.5)
    users = np.arange(40)
    taken = Experiment(AB, 2, 0.5).takes(users)
    assert 5 < taken.sum() < 35
    assert trying.versions() == np.where(taken, 2, 1).tolist()
    assert trying.candidate.asked == users[taken].tolist()
    counted = trying.counted()
    assert counted["fuserec_ab_rows_total 2"] == taken.sum()
    assert counted["fuserec_ab_rows_total 1"] == 40 - taken.sum()
    assert counted["fuserec_rows_total answered recommend 2"] == taken.sum()
    assert counted["fuserec_rows_total answered recommend 1"] == 40 - taken.sum()
    assert counted["fuserec_unknown_ids_total recommend 2"] == taken.sum()
    assert counted["fuserec_stage_seconds_count total recommend 2"] == 1


def test_ab_leaves_texts_to_who_reads_them(trying: Trying) -> None:
    trying.say(AB)
    queries = [Query(1, NO_IDS, NO_IDS, 2, text="jazz"), Query(1, NO_IDS, NO_IDS, 2)]
    assert trying.versions(queries) == [1, 2]


def test_experiment_ends_and_another_begins(trying: Trying) -> None:
    trying.say(AB)
    assert trying.versions() == [2] * 40
    trying.say(None)
    assert trying.versions() == [1] * 40
    trying.candidate = FakePipeline(3)
    trying.say(AB, version=3)
    assert trying.versions() == [3] * 40
    assert trying.opened == [2, 3]


def test_another_share_opens_nothing_anew(trying: Trying) -> None:
    trying.say(AB, share=0.01)
    trying.say(AB, share=1.0)
    assert trying.versions() == [2] * 40 and trying.opened == [2]


def test_experiment_beside_another_version_is_not_mine(trying: Trying) -> None:
    trying.say(AB, version=2, serve=3)
    assert trying.versions() == [1] * 40 and trying.opened == []


def test_candidate_that_cannot_be_opened_is_named_once(trying: Trying, caplog: pytest.LogCaptureFixture) -> None:
    trying.cannot_open = True
    for _ in range(3):
        trying.say(AB)
    assert trying.versions() == [1] * 40
    assert trying.opened == [2] and caplog.text.count("version 2 cannot be tried: damaged") == 1
    trying.cannot_open = False
    trying.say(None)
    trying.say(AB)
    assert trying.versions() == [2] * 40, "said anew, it was not tried anew"


def test_candidate_that_fails_ends_its_experiment(trying: Trying, caplog: pytest.LogCaptureFixture) -> None:
    trying.say(AB)
    trying.candidate.broken = True
    assert trying.versions() == [1] * 40, "callers were not answered as served"
    trying.experiments.follow()
    assert trying.experiments.running is None and trying.opened == [2]
    assert caplog.text.count("version 2 failed; its experiment ends here") == 1


def test_unreadable_file_changes_nothing(trying: Trying, caplog: pytest.LogCaptureFixture) -> None:
    trying.say(AB)
    (trying.repository / "traffic.json").write_text("{")
    for _ in range(3):
        trying.experiments.follow()
    assert trying.versions() == [2] * 40
    assert caplog.text.count("the experiment stays as it is") == 1


def test_shadow_is_seen_by_nobody_but_the_numbers(trying: Trying) -> None:
    trying.say(SHADOW, share=0.5)
    trying.experiments.start()
    taken = np.flatnonzero(Experiment(SHADOW, 2, 0.5).takes(np.arange(40))).tolist()
    assert trying.versions() == [1] * 40
    wait_until(lambda: trying.counted().get("fuserec_shadow_seconds_sum 1 2", 0) > 0, "a row of the shadow")
    wait_until(lambda: trying.counted()["fuserec_shadow_rows_total 1 2"] == len(taken), f"{len(taken)} rows")
    assert trying.candidate.asked == taken
    counted = trying.counted()
    assert counted["fuserec_shadow_overlap_sum 1 2"] == pytest.approx(0.5 * len(taken))
    assert "fuserec_ab_rows_total 1" not in counted and "fuserec_shadow_dropped_total 1 2" not in counted
    assert counted["fuserec_rows_total answered recommend 1"] == 40
    assert counted.get("fuserec_rows_total answered recommend 2", 0) == 0


def test_shadow_that_is_behind_lets_rows_pass(trying: Trying) -> None:
    trying.say(SHADOW)
    trying.candidate.go.clear()
    trying.experiments.start()
    began = time.monotonic()
    for _ in range(20):
        assert trying.versions() == [1] * 40
    assert time.monotonic() - began < 10, "callers waited for the shadow"
    trying.candidate.go.set()
    wait_until(lambda: len(trying.candidate.asked) >= SHADOW_QUEUE, "the rows that waited")
    dropped = trying.counted()["fuserec_shadow_dropped_total 1 2"]
    wait_until(
        lambda: trying.counted()["fuserec_shadow_rows_total 1 2"] == 800 - dropped,
        f"all rows but {dropped:.0f} dropped",
    )
    assert len(trying.candidate.asked) < 2 * SHADOW_QUEUE < 800


def test_shadow_keeps_no_views_of_a_request(trying: Trying) -> None:
    """The server takes the memory of a request back once it is answered."""
    trying.say(SHADOW)
    history = np.array([1, 2, 3])
    seen: list[list[int]] = []
    recommend = trying.candidate.recommend
    trying.candidate.recommend = lambda queries: (
        seen.extend(query.history.tolist() for query in queries)
        or recommend(  # type: ignore[method-assign, func-returns-value]
            queries
        )
    )
    trying.experiments.recommend([Query(1, history[:], NO_IDS, 2)])
    history[:] = 9
    trying.experiments.start()
    wait_until(lambda: bool(seen), "a row of the shadow")
    assert seen == [[1, 2, 3]]


def test_thread_follows_the_file(trying: Trying) -> None:
    trying.experiments._every_s = 0.02
    trying.experiments.start()
    document = {"serve": 1, "experiment": {"kind": "ab", "version": 2, "share": 1.0}}
    (trying.repository / "traffic.json").write_text(json.dumps(document))
    wait_until(lambda: trying.versions() == [2] * 40, "answers of the candidate")
    (trying.repository / "traffic.json").unlink()
    # The newest is served now, and it is not this one.
    wait_until(lambda: trying.versions() == [1] * 40, "answers as served")
