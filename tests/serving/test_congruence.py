"""What is served is what the pipeline in this process answers: over gRPC, over HTTP, blocking and in asyncio."""

import asyncio
import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.client import AsyncRecommender, Recommendations, Recommender
from fuserec.contract import NO_ID
from fuserec.serve.launcher import Server
from fuserec.serve.pipeline import Answer, Pipeline
from fuserec.serve.query import Query

pytestmark = pytest.mark.serving
N_USERS = 200
K = 10


@pytest.fixture(scope="module")
def queries(bundle: Path) -> list[Query]:
    """Known users, some with a history of their own, some with exclusions."""
    rng = np.random.default_rng(3)
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].head(N_USERS).to_list()
    items = pl.read_parquet(bundle / "items.parquet")["item_id"].to_numpy()
    return [
        Query(
            user_id if place % 5 else NO_ID,
            rng.choice(items, rng.integers(1, 60) if place % 3 == 0 else 0),
            rng.choice(items, rng.integers(0, 20)),
            K,
        )
        for place, user_id in enumerate(users)
    ]


@pytest.fixture(scope="module")
def expected(bundle: Path, queries: list[Query]) -> list[Answer]:
    pipeline = Pipeline.open(bundle)
    return [pipeline.recommend([query])[0] for query in queries]


def url(server: Server, scheme: str) -> str:
    return f"{scheme}://127.0.0.1:{server.address.ports[scheme]}"


def arguments(query: Query) -> dict[str, object]:
    user_id = None if query.user_id == NO_ID else query.user_id
    return {"user_id": user_id, "history": query.history, "exclude": query.exclude, "k": query.k}


def assert_same(came: Sequence[Recommendations], expected: Sequence[Answer]) -> None:
    for place, (served, own) in enumerate(zip(came, expected, strict=True)):
        np.testing.assert_array_equal(served.item_ids, own.item_ids, err_msg=f"ids of query {place}")
        np.testing.assert_allclose(served.scores, own.scores, rtol=0, atol=1e-5, err_msg=f"scores of query {place}")
        assert (served.fallback, served.ignored, served.model_version) == (own.fallback, own.ignored, "1")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_served_equals_in_process(server: Server, queries: list[Query], expected: list[Answer], scheme: str) -> None:
    assert len(queries) == N_USERS
    with Recommender(url(server, scheme), timeout_ms=10_000) as recommender:
        assert_same([recommender.recommend(**arguments(query)) for query in queries], expected)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_asyncio_equals_in_process(server: Server, queries: list[Query], expected: list[Answer], scheme: str) -> None:
    async def ask() -> list[Recommendations]:
        async with AsyncRecommender(url(server, scheme), timeout_ms=30_000) as recommender:
            return await asyncio.gather(*(recommender.recommend(**arguments(query)) for query in queries))

    assert_same(asyncio.run(ask()), expected)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_threads_share_a_client(server: Server, queries: list[Query], expected: list[Answer], scheme: str) -> None:
    with (
        Recommender(url(server, scheme), timeout_ms=30_000) as recommender,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        assert_same(list(pool.map(lambda query: recommender.recommend(**arguments(query)), queries)), expected)
