"""What is answered over HTTP is JSON that any reader takes, for every model and wherever there is no number to give."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuserec.client import Recommender, Rules
from fuserec.contract import NO_ID, NO_SCORE
from fuserec.export import ExportConfig, Gate, export_checkpoint
from fuserec.models.checkpoint import Checkpoint
from fuserec.serve.launcher import Address, Server
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.settings import ServingConfig
from fuserec.serve.users import NO_IDS
from tests.serving.promises.raw import document, json_outputs, post

pytestmark = pytest.mark.serving
ITEMS = [1000 + 7 * row for row in range(300)]
USER, UNKNOWN = 5, 10**12
DIM = 32
NOTHING = json.dumps({"caps": {"*": 0}})


@pytest.fixture(scope="module")
def repository(
    checkpoint_folder: Path,
    untrained: Callable[[str, Path], None],
    trace_once: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A retriever and a ranker that says ratings, too: one that says none is in `test_ranking`."""
    folder = tmp_path_factory.mktemp("ranked")
    untrained("ranker-mlp", folder / "clicks")
    clicks = Checkpoint.load(folder / "clicks")
    arguments = clicks.arguments | {"tasks": "click,rating"}
    Checkpoint(clicks.architecture, arguments, clicks.items, clicks.users, {}, clicks.state).save(folder / "ranker")
    config = ExportConfig("fp32", ("cpu",), gate=Gate(accept_loss=True), ranker=folder / "ranker", candidates=50)
    with trace_once():
        export_checkpoint(checkpoint_folder, folder / "repository", config)
    return folder / "repository"


@pytest.fixture(scope="module")
def ranked(repository: Path) -> Iterator[Server]:
    with Server(repository, address=Address.free(), settings=ServingConfig(instances=1)) as server:
        yield server


def ask(server: Server, model: str, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Ask a model in JSON; a row names what it gives, and lists are padded."""
    types = {"k": "INT32", "rules": "BYTES", "query": "FP32"}
    fields = []
    for name in dict.fromkeys(name for row in rows for name in row):
        lists = [list(np.atleast_1d(row.get(name, "" if name == "rules" else NO_ID)).tolist()) for row in rows]
        width = max(map(len, lists))
        data = [value for values in lists for value in [*values, *[NO_ID] * (width - len(values))]]
        shape = [len(rows), width]
        fields.append({"name": name, "datatype": types.get(name, "INT64"), "shape": shape, "data": data})
    return json_outputs(post(server, document(*fields), f"/v2/models/{model}/infer"))


@pytest.mark.parametrize(
    ("model", "rows", "left"),
    [
        pytest.param("recommend", [{"user_id": USER, "k": 2}], [2], id="recommend: whole"),
        pytest.param("recommend", [{"user_id": USER, "k": 400}], None, id="recommend: k beyond the catalogue"),
        pytest.param("recommend", [{"user_id": USER, "k": 3, "exclude": ITEMS}], [0], id="recommend: nothing left"),
        pytest.param("recommend", [{"user_id": UNKNOWN, "k": 301}], [300], id="recommend: a stranger"),
        pytest.param(
            "recommend", [{"user_id": UNKNOWN, "k": 3, "exclude": ITEMS}], [0], id="recommend: nothing for a stranger"
        ),
        pytest.param(
            "recommend", [{"user_id": NO_ID, "k": 9, "history": ITEMS[:5], "allow": ITEMS[3:8]}], [3], id="allow"
        ),
        pytest.param("recommend", [{"user_id": USER, "k": 3, "rules": NOTHING}], [0], id="recommend: rules"),
        pytest.param(
            "recommend",
            [{"user_id": USER, "k": 2}, {"user_id": 8, "k": 4}, {"user_id": 8, "k": 5, "exclude": ITEMS}],
            [2, 4, 0],
            id="recommend: rows of unequal k",
        ),
        pytest.param("search", [{"query": [1.0] * DIM, "k": 2}], [2], id="search: whole"),
        pytest.param("search", [{"query": [1.0] * DIM, "k": 301}], [300], id="search: k beyond the catalogue"),
        pytest.param("search", [{"query": [1.0] * DIM, "k": 3, "exclude": ITEMS}], [0], id="search: nothing left"),
        pytest.param(
            "search",
            [{"query": [-1.0] * DIM, "k": 2}, {"query": [0.0] * DIM, "k": 4, "exclude": ITEMS[1:]}],
            [2, 1],
            id="search: rows of unequal k",
        ),
        pytest.param("rank", [{"user_id": USER, "candidates": ITEMS[:3]}], [3], id="rank: whole"),
        pytest.param("rank", [{"user_id": USER, "candidates": [1, 2]}], [0], id="rank: nothing known"),
        pytest.param(
            "rank",
            [{"user_id": USER, "candidates": ITEMS[:3]}, {"user_id": 8, "candidates": [1, ITEMS[7]]}],
            [3, 1],
            id="rank: rows of unequal length",
        ),
        pytest.param(
            "rank",
            [{"user_id": USER, "candidates": ITEMS[:3]}, {"user_id": NO_ID, "candidates": [1]}],
            [3, 0],
            id="rank: nothing known in a row",
        ),
    ],
)
def test_what_has_no_score_has_a_finite_one(
    ranked: Server, model: str, rows: list[dict[str, Any]], left: list[int] | None
) -> None:
    answer = ask(ranked, model, rows)
    none = answer["item_ids"] == NO_ID
    if left is None:
        assert none.any() and not none.all()
    else:
        assert (~none).sum(axis=1).tolist() == left
    for name in ("scores", "ratings") if model == "rank" else ("scores",):
        assert np.isfinite(answer[name]).all()
        np.testing.assert_array_equal(answer[name] == np.float32(NO_SCORE), none, err_msg=name)


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        pytest.param(
            "encode",
            [{"user_id": USER}, {"user_id": UNKNOWN}, {"user_id": NO_ID, "history": ITEMS[:3]}],
            id="encode",
        ),
        pytest.param(
            "explain",
            [
                {"user_id": USER, "item_id": ITEMS[0]},
                {"user_id": NO_ID, "item_id": ITEMS[1], "history": ITEMS[:3]},
                {"user_id": UNKNOWN, "item_id": ITEMS[2]},
            ],
            id="explain: rows of unequal length",
        ),
        pytest.param("explain", [{"user_id": NO_ID, "item_id": ITEMS[1]}], id="explain: no history"),
    ],
)
def test_other_numbers_are_finite(ranked: Server, model: str, rows: list[dict[str, Any]]) -> None:
    for name, array in ask(ranked, model, rows).items():
        assert len(array) == len(rows), f"{name} came with {len(array)} rows"
        assert np.isfinite(array).all() and (abs(array) < abs(NO_SCORE)).all(), f"{name} is {array}"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_clients_see_what_the_library_says(ranked: Server, repository: Path, scheme: str) -> None:
    """Minus infinity in the tail, as in the pipeline of this process; ratings where there are some."""
    pipeline = Pipeline.open(repository / "recommend" / "1")
    url = f"{scheme}://{ranked.address.host}:{ranked.address.ports[scheme]}"
    asked = [
        Query(USER, NO_IDS, NO_IDS, 2),
        Query(USER, NO_IDS, NO_IDS, 400),
        Query(UNKNOWN, NO_IDS, np.array(ITEMS[5:]), 10),
        Query(USER, NO_IDS, np.array(ITEMS), 4),
        Query(USER, NO_IDS, NO_IDS, 4, rules=Rules(caps={"*": 0})),
    ]
    with Recommender(url, timeout_ms=20_000) as client:
        for place, query in enumerate(asked):
            [own] = pipeline.recommend([query])
            came = client.recommend(user_id=query.user_id, k=query.k, exclude=query.exclude, rules=query.rules)
            np.testing.assert_array_equal(came.item_ids, own.item_ids, err_msg=f"ids of query {place}")
            np.testing.assert_allclose(came.scores, own.scores, atol=1e-5, err_msg=f"scores of query {place}")
            assert np.isneginf(came.scores[len(came) :]).all() and np.isfinite(came.scores[: len(came)]).all()
        ratings = client.rank(user_id=USER, candidates=[*ITEMS[:3], 1]).ratings
        assert len(ratings) == 3 and np.isfinite(ratings).all() and (ratings > NO_SCORE).all()
