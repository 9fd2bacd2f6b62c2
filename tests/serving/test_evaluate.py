"""A live server is evaluated and explains as the bundle in this process does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.evaluators import open_evaluator
from fuserec.explainers import explain_by_repository, explain_by_server
from fuserec.serve.launcher import Server
from fuserec.train.questions import Questions
from fuserec.train.ragged import Ragged

pytestmark = pytest.mark.serving
K = 10


@pytest.fixture(scope="module")
def questions(bundle: Path) -> Questions:
    """The users of the bundle: what each has consumed but the last item, and that item."""
    users = pl.read_parquet(bundle / "users.parquet")
    whole = Ragged.from_lengths(
        users["history"].explode().to_numpy(), users["history"].list.len().to_numpy().astype(np.int64)
    )
    histories = whole.without_last(np.ones(len(whole), dtype=np.int64))
    return Questions(users["user_id"].to_numpy(), histories, whole.values[whole.offsets[1:] - 1])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_server_answers_as_the_bundle_does(server: Server, repository: Path, questions: Questions, scheme: str) -> None:
    progress: list[int] = []
    url = f"{scheme}://127.0.0.1:{server.address.ports[scheme]}"
    served = open_evaluator(url, 30_000).answer(questions, K, progress.append)
    own = open_evaluator(str(repository), 1_000).answer(questions, K, lambda done: None)
    np.testing.assert_array_equal(served.top, own.top)
    np.testing.assert_array_equal(served.ranks, own.ranks)
    assert sum(progress) == len(questions)
    # Among 300 items an untrained model finds some; a bundle that left out what it has stored would find none.
    assert (served.ranks <= K).any()


def test_server_explains_as_the_bundle_does(server: Server, repository: Path, questions: Questions) -> None:
    user, item = int(questions.user_ids[3]), int(questions.targets[5])
    url = f"127.0.0.1:{server.address.ports['grpc']}"
    served, own = explain_by_server(url, user, None, item, 30_000), explain_by_repository(repository, user, None, item)
    np.testing.assert_array_equal(served.item_ids, own.item_ids)
    np.testing.assert_allclose(served.contributions, own.contributions, atol=1e-5)
    assert served.score == pytest.approx(own.score, abs=1e-5)
    assert served.baseline == pytest.approx(own.baseline, abs=1e-5)
