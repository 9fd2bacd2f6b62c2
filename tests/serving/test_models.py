"""The models over the raw protocol: the single stages, rows with different k, and one bad request among good ones."""

import concurrent.futures
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from fuserec.client import InvalidRequest, Recommender
from fuserec.contract import MAX_K, NO_ID, NO_SCORE
from fuserec.serve.launcher import Server
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.users import NO_IDS

pytestmark = pytest.mark.serving
DATATYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}


@pytest.fixture
def stock(server: Server) -> grpc.InferenceServerClient:
    with grpc.InferenceServerClient(f"127.0.0.1:{server.address.grpc_port}") as client:
        yield client


def infer(client: grpc.InferenceServerClient, model: str, **arrays: np.ndarray) -> grpc.InferResult:
    inputs = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(model, inputs)


def column(*values: int, dtype: type = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)[:, None]


def test_stages_compose_to_the_front_door(stock: grpc.InferenceServerClient, bundle: Path) -> None:
    users = pl.read_parquet(bundle / "users.parquet").head(5)
    ids = users["user_id"].to_numpy()[:, None].copy()
    encoded = infer(stock, "encode", user_id=ids)
    assert not encoded.as_numpy("fallback").any() and not encoded.as_numpy("ignored").any()
    seen = [np.array(history) for history in users["history"].to_list()]
    exclude = np.full((5, max(map(len, seen))), NO_ID)
    for row, history in zip(exclude, seen, strict=True):
        row[: len(history)] = history
    k = column(*[10] * 5, dtype=np.int32)
    found = infer(stock, "search", query=encoded.as_numpy("user_vector"), exclude=exclude, k=k)
    front = infer(stock, "recommend", user_id=ids, k=k)
    np.testing.assert_array_equal(found.as_numpy("item_ids"), front.as_numpy("item_ids"))
    np.testing.assert_allclose(found.as_numpy("scores"), front.as_numpy("scores"), atol=1e-5)


def test_encode_says_what_it_does_not_know(stock: grpc.InferenceServerClient) -> None:
    encoded = infer(stock, "encode", user_id=column(NO_ID, 5), history=np.array([[3, 4], [3, NO_ID]]))
    assert encoded.as_numpy("fallback")[:, 0].tolist() == [True, False]
    assert encoded.as_numpy("ignored")[:, 0].tolist() == [2, 1]


@pytest.mark.parametrize("model", ["recommend", "search"])
def test_rows_may_differ_in_k(stock: grpc.InferenceServerClient, bundle: Path, model: str) -> None:
    vectors = Pipeline.open(bundle).encode([Query(5, NO_IDS, NO_IDS, 1)] * 2).vectors
    who = {"user_id": column(5, 5)} if model == "recommend" else {"query": vectors}
    result = infer(stock, model, **who, k=column(2, 4, dtype=np.int32))
    ids = result.as_numpy("item_ids")
    assert ids.shape == (2, 4)
    assert ids[0].tolist() == [*ids[1, :2].tolist(), NO_ID, NO_ID]
    assert (result.as_numpy("scores")[0, 2:] == NO_SCORE).all()


@pytest.mark.parametrize(
    ("model", "arrays", "message"),
    [
        pytest.param(
            "recommend",
            {"user_id": column(5), "k": column(0, dtype=np.int32)},
            "invalid k=0: must be 1 to 10,000",
            id="k zero",
        ),
        pytest.param(
            "recommend",
            {"user_id": column(5), "k": column(MAX_K + 1, dtype=np.int32)},
            f"must be 1 to {MAX_K:,} .max_k.",
            id="k too large",
        ),
        pytest.param(
            "search",
            {"query": np.zeros((1, 7), np.float32), "k": column(1, dtype=np.int32)},
            "dimension 7, expected 32",
            id="wrong dimension",
        ),
        pytest.param(
            "search",
            {"query": np.full((1, 32), np.nan, np.float32), "k": column(1, dtype=np.int32)},
            "NaN or infinite",
            id="NaN",
        ),
        pytest.param(
            "search",
            {"query": np.full((1, 32), 3e38, np.float32), "k": column(1, dtype=np.int32)},
            "expected finite values whose scores fit float32",
            id="scores that overflow",
        ),
        pytest.param(
            "recommend", {"user_id": column(5), "k": column(1)}, "data-type is 'INT64'.*expects 'INT32'", id="dtype"
        ),
        pytest.param(
            "recommend",
            {"user_id": column(5), "history": np.zeros((1, 10_001), np.int64), "k": column(1, dtype=np.int32)},
            "history came with 10001 ids a row",
            id="history too long",
        ),
    ],
)
def test_wrong_input_is_an_invalid_argument(
    stock: grpc.InferenceServerClient, model: str, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        infer(stock, model, **arrays)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_bad_request_fails_alone(server: Server, stock: grpc.InferenceServerClient) -> None:
    """Good and bad requests at once share batches; each is answered as if it were alone."""
    alone = infer(stock, "recommend", user_id=column(5), k=column(10, dtype=np.int32)).as_numpy("item_ids")

    def ask(place: int) -> object:
        try:
            k = 0 if place % 4 == 0 else 10
            result = infer(stock, "recommend", user_id=column(5), k=column(k, dtype=np.int32))
            return result.as_numpy("item_ids").tolist()
        except InferenceServerException as error:
            return error.status()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    for place, answer in enumerate(answers):
        assert answer == ("StatusCode.INVALID_ARGUMENT" if place % 4 == 0 else alone.tolist()), f"request {place}"


def test_refusal_of_the_server_reaches_the_client_typed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client checks k itself; here its own check is taken away, so that the server's answer is seen.
    monkeypatch.setattr("fuserec.client._wire._k", int)
    for scheme in ("grpc", "http"):
        address = f"{scheme}://127.0.0.1:{server.address.ports[scheme]}"
        with (
            Recommender(address) as recommender,
            pytest.raises(InvalidRequest, match="invalid k=0: must be 1"),
        ):
            recommender.recommend(user_id=5, k=0)
