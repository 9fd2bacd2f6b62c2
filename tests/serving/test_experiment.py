"""Shadow and A/B on the real server: what callers get, what the metrics say, and that a bad version harms nobody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fuserec.client import Query, Recommender
from fuserec.export import rollout
from fuserec.serve.launcher import Address, Server
from fuserec.traffic import AB, SHADOW, Experiment, Traffic

from .scraping import settled, wait_for

pytestmark = pytest.mark.serving
USERS = [5 + 3 * row for row in range(200)]
SHARE = 0.4
PAIR = {"version": "1", "candidate": "2"}


@pytest.fixture(scope="module")
def tried(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of version 1, with a version 2 of the same content beside it."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("tried") / "repository"))
    with Server(copy, address=Address.free()) as server:
        rollout.publish(repository, copy, kind=SHADOW, share=0.001, force=True)
        yield server


@pytest.fixture
def client(tried: Server) -> Iterator[Recommender]:
    with Recommender(f"127.0.0.1:{tried.address.grpc_port}", timeout_ms=10_000) as client:
        yield client


def versions(client: Recommender) -> list[int]:
    return [int(answer.version) for answer in client.recommend_many([Query(user_id=user, k=5) for user in USERS])]


def test_shadow_is_counted_and_not_seen(tried: Server, client: Recommender) -> None:
    rollout.try_out(tried.repository, SHADOW, 2, SHARE)
    asked = [0]

    def shadowed_again() -> bool:
        assert versions(client) == [1] * len(USERS), "a shadow answered a caller"
        asked[0] += 1
        return True

    found = wait_for(
        tried,
        lambda found: shadowed_again() and found.total("fuserec_shadow_rows_total", **PAIR) > 50,
        "50 rows of the shadow",
    )
    found = settled(tried)
    rows = found.total("fuserec_shadow_rows_total", **PAIR)
    taken = int(Experiment(SHADOW, 2, SHARE).takes(np.array(USERS)).sum())
    assert rows <= taken * asked[0], (
        f"{rows} rows of the shadow, and {taken} users of {len(USERS)} asked {asked[0]} times"
    )
    assert found.total("fuserec_shadow_overlap_sum", **PAIR) == rows, "equal versions, and not all items in common"
    assert 0 < found.total("fuserec_shadow_seconds_sum", **PAIR) < 0.1 * rows
    assert found.total("fuserec_rows_total", model="recommend", version="2") == 0


def test_ab_splits_by_user(tried: Server, client: Recommender) -> None:
    rollout.try_out(tried.repository, AB, 2, SHARE)
    expected = np.where(Experiment(AB, 2, SHARE).takes(np.array(USERS)), 2, 1).tolist()
    assert {1, 2} == set(expected)
    # Each process follows by itself: both have when no answer differs several times in a row.
    in_a_row = [0]

    def split() -> bool:
        in_a_row[0] = in_a_row[0] + 1 if versions(client) == expected else 0
        return in_a_row[0] == 8

    found = wait_for(tried, lambda _: split(), "answers split by user")
    found = settled(tried)
    by_version = {version: found.total("fuserec_ab_rows_total", version=version) for version in ("1", "2")}
    assert by_version["2"] > 0
    assert by_version["2"] == found.total("fuserec_rows_total", model="recommend", version="2")
    assert found.total("fuserec_stage_seconds_count", model="recommend", version="2", stage="search") > 0


def test_damaged_candidate_is_named_and_the_served_one_goes_on(tried: Server, client: Recommender) -> None:
    rollout.stop_trying(tried.repository)
    engine = tried.repository / "recommend" / "2" / "engines" / "user_tower.cpu.onnx"
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1] + b"!")
    try:
        wait_for(tried, lambda _: versions(client) == [1] * len(USERS), "the end of the experiment")
        # `try_out` would refuse what is damaged.
        Traffic(1, Experiment(AB, 2, 1.0)).write(tried.repository)
        wait_for(
            tried, lambda _: tried.log.read_text().count("version 2 cannot be tried") >= 2, "a word of each process"
        )
        assert versions(client) == [1] * len(USERS)
    finally:
        engine.write_bytes(whole)
    assert tried.log.read_text().count("version 2 cannot be tried") == tried.settings.instances
