"""Requests that break others, over gRPC: strangers, empty and endless lists, nothing left, bad among good in one batch.

The bundle is in float32, where a sum in another order differs in the last bit: int8 would hide it.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tritonclient.grpc as grpc

from fuserec.contract import NO_ID, NO_SCORE
from fuserec.export import ExportConfig, Gate, export_checkpoint
from fuserec.rules import Rules
from fuserec.serve.launcher import Address, Server

pytestmark = pytest.mark.serving
UNKNOWN = 10**12
OUTPUTS = ("item_ids", "scores", "fallback", "ignored", "version")
DATATYPES = {
    "user_id": "INT64",
    "history": "INT64",
    "exclude": "INT64",
    "allow": "INT64",
    "rules": "BYTES",
    "k": "INT32",
}
Request = dict[str, np.ndarray]
Answer = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(
    checkpoint_folder: Path,
    trace_once: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("float32") / "repository"
    with trace_once():
        export_checkpoint(checkpoint_folder, folder, ExportConfig("fp32", ("cpu",), gate=Gate(accept_loss=True)))
    return folder


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "recommend" / "1" / "items.parquet")


@pytest.fixture(scope="module")
def items(catalogue: pl.DataFrame) -> np.ndarray:
    return catalogue["item_id"].to_numpy()


@pytest.fixture(scope="module")
def stock(folder: Path) -> Iterator[grpc.InferenceServerClient]:
    address = Address.free()
    with (
        Server(folder, address=address),
        grpc.InferenceServerClient(f"127.0.0.1:{address.grpc_port}") as client,
    ):
        yield client


def request(*rows: dict[str, Any]) -> Request:
    """Return the tensors of one request; a row names what it gives, and lists are padded."""
    arrays = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in ("user_id", "k"):
            arrays[name] = np.array([[row[name]] for row in rows], dtype=np.int32 if name == "k" else np.int64)
        elif name == "rules":
            arrays[name] = np.array([[row.get(name, "").encode()] for row in rows], dtype=np.object_)
        else:
            arrays[name] = np.full((len(rows), max(1, *(len(row.get(name, ())) for row in rows))), NO_ID)
            for line, row in zip(arrays[name], rows, strict=True):
                line[: len(row.get(name, ()))] = row.get(name, ())
    return arrays


def as_inputs(arrays: Request) -> list[grpc.InferInput]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, list(array.shape), DATATYPES[name]))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def ask(stock: grpc.InferenceServerClient, *rows: dict[str, Any]) -> Answer:
    result = stock.infer("recommend", as_inputs(request(*rows)), client_timeout=20)
    return {name: result.as_numpy(name) for name in OUTPUTS}


def ask_at_once(stock: grpc.InferenceServerClient, requests: Sequence[Request]) -> list[Answer | Exception]:
    """Send all before any answer is waited for."""
    done: queue.Queue[tuple[int, Any, Exception | None]] = queue.Queue()
    for place, arrays in enumerate(requests):

        def keep(result: Any, error: Exception | None, place: int = place) -> None:
            done.put((place, result, error))

        stock.async_infer("recommend", as_inputs(arrays), keep, client_timeout=60)
    answers: list[Answer | Exception] = [RuntimeError("no answer")] * len(requests)
    for _ in requests:
        place, result, error = done.get(timeout=60)
        answers[place] = error or {name: result.as_numpy(name) for name in OUTPUTS}
    return answers


def ask_in_batches(stock: grpc.InferenceServerClient, requests: Sequence[Request]) -> list[Answer | Exception]:
    """Send all at once until they took less than half as many executions.

    They are sent by this process, beside the server: while other work takes its core the queue stays empty.
    """
    took = []
    for _ in range(10):
        before = executions(stock)
        answers = ask_at_once(stock, requests)
        ran, answered = (after - once for after, once in zip(executions(stock), before, strict=True))
        assert answered == len(requests)
        took.append(ran)
        if took[-1] <= len(requests) // 2:
            return answers
    raise AssertionError(f"{len(requests)} concurrent requests took {took} executions: no batches")


def assert_same_bits(came: Answer | Exception, alone: Answer, what: str) -> None:
    assert not isinstance(came, Exception), f"{what}: {came}"
    for name in OUTPUTS:
        assert came[name].tobytes() == alone[name].tobytes(), (
            f"{what}: {name} came as {came[name]}, alone {alone[name]}"
        )


@pytest.mark.parametrize("history", [None, [], [UNKNOWN]], ids=["no history", "empty history", "unknown items"])
@pytest.mark.parametrize("user", [NO_ID, UNKNOWN], ids=["nobody", "unknown user"])
def test_strangers_get_what_is_popular(
    stock: grpc.InferenceServerClient, catalogue: pl.DataFrame, user: int, history: list[int] | None
) -> None:
    row = {"user_id": user, "k": 5} | ({} if history is None else {"history": history})
    answer = ask(stock, row)
    popular = catalogue.sort(["count", "item_id"], descending=[True, False])["item_id"].head(5).to_list()
    assert answer["item_ids"].tolist() == [popular]
    assert answer["fallback"].tolist() == [[True]] and answer["ignored"].tolist() == [[len(history or ())]]
    assert answer["version"].tolist() == [[1]] and answer["version"].dtype == np.int64


@pytest.mark.parametrize("user", [5, UNKNOWN], ids=["known", "fallback"])
@pytest.mark.parametrize("left", [0, 3])
def test_fewer_items_are_left_than_asked_for(
    stock: grpc.InferenceServerClient, items: np.ndarray, user: int, left: int
) -> None:
    """Every item but a few is excluded; the tail of the answer is none."""
    keep = ask(stock, {"user_id": user, "k": 3})["item_ids"][0, :left].tolist()
    exclude = [item for item in items.tolist() if item not in keep]
    answer = ask(stock, {"user_id": user, "exclude": exclude, "k": 10})
    assert answer["item_ids"].tolist() == [keep + [NO_ID] * (10 - left)]
    assert (answer["scores"][0, :left] > NO_SCORE).all() and (answer["scores"][0, left:] == NO_SCORE).all()
    assert answer["ignored"].tolist() == [[0]]


def test_k_beyond_the_catalogue(stock: grpc.InferenceServerClient, items: np.ndarray) -> None:
    answer = ask(stock, {"user_id": 5, "k": 10_000})
    listed = answer["item_ids"][0][answer["item_ids"][0] != NO_ID]
    assert answer["item_ids"].shape == (1, 10_000) and 0 < len(listed) < len(items)
    assert len(set(listed.tolist())) == len(listed)


@pytest.mark.parametrize("name", ["history", "exclude", "allow"])
def test_duplicates(stock: grpc.InferenceServerClient, items: np.ndarray, name: str) -> None:
    """Twice is once; but in a history, where it says what somebody had again, it may change the order."""
    some = items[40:70].tolist()
    once, twice = (ask(stock, {"user_id": 5, name: some * times, "k": 50}) for times in (1, 2))
    assert set(once["item_ids"][0].tolist()) == set(twice["item_ids"][0].tolist()) and twice["ignored"].tolist() == [
        [0]
    ]
    if name != "history":
        assert_same_bits(twice, once, name)
    listed = [item for item in twice["item_ids"][0].tolist() if item != NO_ID]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(some) if name == "allow" else not set(listed) & set(some)


def test_ten_thousand_excluded(stock: grpc.InferenceServerClient, items: np.ndarray) -> None:
    exclude = [*range(UNKNOWN, UNKNOWN + 9_800), *items[:200].tolist()]
    answer = ask(stock, {"user_id": 5, "exclude": exclude, "k": 20})
    assert answer["ignored"].tolist() == [[9_800]]
    assert set(answer["item_ids"][0].tolist()) <= set(items[200:].tolist()), "an excluded item came back"
    plain = ask(stock, {"user_id": 5, "exclude": items[:200].tolist(), "k": 20})
    assert answer["scores"].tobytes() == plain["scores"].tobytes()


def test_rules_and_allow_lists_are_served(stock: grpc.InferenceServerClient, catalogue: pl.DataFrame) -> None:
    genre = dict(zip(catalogue["item_id"].to_list(), catalogue["genres"].list.first().to_list(), strict=True))
    rules = Rules(caps={"Even": 2, "Never": 1}).to_json()
    allow = catalogue["item_id"].to_list()[50:100]
    answer = ask(
        stock,
        {"user_id": 5, "k": 10, "rules": rules, "allow": allow},
        {"user_id": 8, "k": 10, "rules": Rules(boosts={"Odd": 1e30}).to_json()},
        {"user_id": 8, "k": 10},
    )
    first, second, third = answer["item_ids"].tolist()
    assert sum(genre[item] == "Even" for item in first) == 2 and set(first) <= set(allow)
    assert {genre[item] for item in second} == {"Odd"}
    assert third == ask(stock, {"user_id": 8, "k": 10})["item_ids"][0].tolist()
    assert answer["ignored"][:, 0].tolist() == [1, 0, 0] and answer["version"][:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("{", "rules is not JSON"),
        ('{"caps": {"Even": -1}}', "the cap of 'Even' came as -1"),
        ('{"boosts": {"Even": 1e31}}', "the boost of 'Even' came as 1e\\+31"),
        (json.dumps({"diversity": 2}), "diversity came as 2, expected 0 to 1"),
        ('{"diversity": 0.5}', "k came as 2000 with diversity, expected at most 1000"),
        ("x" * 20_001, "rules came with 20001 characters, expected at most 20000"),
    ],
)
def test_rules_that_are_none_are_refused(stock: grpc.InferenceServerClient, rules: str, message: str) -> None:
    with pytest.raises(grpc.InferenceServerException, match=message) as raised:
        ask(stock, {"user_id": 5, "k": 2_000, "rules": rules})
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


def executions(stock: grpc.InferenceServerClient) -> tuple[int, int]:
    [stats] = stock.get_inference_statistics("recommend").model_stats
    return stats.execution_count, stats.inference_count


def mixed_rows(items: np.ndarray, n: int) -> list[dict[str, Any]]:
    """Return rows with histories of 0 to 200 items, each with exclusions and a k of its own."""
    rng = np.random.default_rng(5)
    lengths = np.append([0, 1, 200], rng.integers(0, 201, n - 3))
    return [
        {
            "user_id": int(rng.choice([5, 8, 11, NO_ID, UNKNOWN])),
            "history": rng.choice(items, length).tolist(),
            "exclude": rng.choice(items, rng.integers(0, 30)).tolist(),
            "k": int(rng.integers(1, 40)),
        }
        for length in lengths.tolist()
    ]


def test_rows_of_one_request_are_bit_equal_to_each_alone(stock: grpc.InferenceServerClient, items: np.ndarray) -> None:
    rows = mixed_rows(items, 64)
    together = ask(stock, *rows)
    for place, row in enumerate(rows):
        alone, k = ask(stock, row), row["k"]
        mine = {name: together[name][place : place + 1] for name in OUTPUTS}
        assert (mine["item_ids"][:, k:] == NO_ID).all() and (mine["scores"][:, k:] == NO_SCORE).all()
        mine |= {name: np.ascontiguousarray(mine[name][:, :k]) for name in ("item_ids", "scores")}
        assert_same_bits(mine, alone, f"row {place} with a history of {len(row['history'])}")


def test_histories_of_all_lengths_form_batches_and_answers_are_bit_equal(
    stock: grpc.InferenceServerClient, items: np.ndarray
) -> None:
    requests = [request(row) for row in mixed_rows(items, 256)]
    alone = [ask_at_once(stock, [arrays])[0] for arrays in requests]
    came = ask_in_batches(stock, requests)
    for place, (one, other) in enumerate(zip(came, alone, strict=True)):
        assert not isinstance(other, Exception)
        assert_same_bits(one, other, f"request {place}")


def test_bad_requests_fail_alone(stock: grpc.InferenceServerClient, items: np.ndarray) -> None:
    """Every fourth request asks for something impossible; the others are answered as if it had not been there."""
    rows = mixed_rows(items, 160)
    for place, row in enumerate(rows):
        row["rules"] = "{" if place % 8 == 3 else Rules(caps={"Odd": 3}).to_json() if place % 3 == 0 else ""
        row["k"] = 0 if place % 8 == 7 else row["k"]
    bad = {place for place in range(len(rows)) if place % 4 == 3}
    requests = [request(row) for row in rows]
    alone = {place: ask(stock, row) for place, row in enumerate(rows) if place not in bad}
    came = ask_in_batches(stock, requests)
    for place, answer in enumerate(came):
        if place in bad:
            assert isinstance(answer, grpc.InferenceServerException), f"request {place} was answered"
            assert answer.status() == "StatusCode.INVALID_ARGUMENT", answer
        else:
            assert_same_bits(answer, alone[place], f"request {place}")
