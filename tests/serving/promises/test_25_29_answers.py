"""Promises 25 to 29: whose memory is read, who suffers with whom, and whether an answer is what it seems."""

from __future__ import annotations

import concurrent.futures
import json

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from bench._raw import Reply, http_request
from fuserec.client import InvalidRequest, Recommender, ServerUnavailable
from fuserec.contract import NO_ID
from fuserec.serve.launcher import Address, Server
from tests.serving.promises.raw import (
    K_FIELD,
    K_TENSOR,
    USER_FIELD,
    USER_TENSOR,
    Tensor,
    assert_refused,
    document,
    executed,
    message,
    metric,
    outputs,
    post,
    send_grpc,
    send_http,
    text,
)

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("kind", ["System", "Cuda"])
@pytest.mark.parametrize("what", ["Register", "Unregister", "Status"])
def test_promise_25_shared_memory_is_closed_to_clients(server: Server, kind: str, what: str) -> None:
    request = getattr(service_pb2, f"{kind}SharedMemory{what}Request")(name="mine")
    if what == "Register":
        request.byte_size = 8
    method = f"/inference.GRPCInferenceService/{kind}SharedMemory{what}"
    assert_refused(send_grpc(server, request, method=method), "restricted", statuses=("UNAVAILABLE",))
    verb = "GET" if what == "Status" else "POST"
    path = f"/v2/{kind.lower()}sharedmemory" + ("/status" if what == "Status" else f"/region/mine/{what.lower()}")
    reply = send_http(server, http_request(path, b'{"key":"/x","offset":0,"byte_size":8}', method=verb))
    assert_refused(reply, "restricted", statuses=("403",))


def test_promise_25_requests_cannot_name_shared_memory(server: Server) -> None:
    """Not even the server's own, whose names an attacker might know."""
    region = {"shared_memory_region": f"fuserec_{server.pid}_x", "shared_memory_byte_size": 8}
    body = document(USER_FIELD | {"parameters": region, "data": None}, K_FIELD)
    for data in (body, body.replace(b', "data": null', b"")):
        assert_refused(post(server, data), statuses=("400", "404", "500"))
    assert_refused(
        post(server, document(outputs=[{"name": "item_ids", "parameters": region}])),
        "shared memory",
        statuses=("400", "404", "500"),
    )  # noqa: E501
    request = message()
    request.raw_input_contents.pop(0)
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region["shared_memory_region"]
    parameters["shared_memory_byte_size"].int64_param = 8
    assert_refused(send_grpc(server, request), "shared memory", statuses=("NOT_FOUND", "INVALID_ARGUMENT"))


def rows(count: int, seed: int) -> list[list[Tensor]]:
    """Return requests for one user each, with histories and exclusions of their own."""
    generator = np.random.default_rng(seed)
    requests: list[list[Tensor]] = []
    for place in range(count):
        history = 1000 + 7 * generator.integers(0, 300, generator.integers(1, 30))
        requests.append(
            [
                ("user_id", "INT64", [1, 1], np.int64(5 + 3 * place).tobytes()),
                ("history", "INT64", [1, len(history)], history.astype(np.int64).tobytes()),
                ("k", "INT32", [1, 1], np.int32(1 + place % 20).tobytes()),
            ]
        )
    return requests


def at_once(server: Server, requests: list[list[Tensor]]) -> list[Reply]:
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda tensors: send_grpc(server, message(*tensors)), requests))


def assert_same(came: Reply, alone: Reply, place: int) -> None:
    for name, value in outputs(alone).items():
        assert outputs(came)[name].tobytes() == value.tobytes(), f"{name} of request {place} differs"


def test_promise_26_a_bad_row_fails_alone(server: Server) -> None:
    """Each third request is impossible; the others of its batch come out bit by bit as they do alone."""
    requests = rows(24, seed=26)
    alone = [send_grpc(server, message(*tensors)) for tensors in requests]
    for tensors in requests[::3]:
        tensors.append(("rules", "BYTES", [1, 1], text(b"{")))
    for tensors in [tensors for place, tensors in enumerate(requests) if place % 3]:
        tensors.append(("rules", "BYTES", [1, 1], text(b"")))  # the same set of inputs, or they would not share a batch
    for place, reply in enumerate(at_once(server, requests)):
        if place % 3 == 0:
            assert_refused(reply, "rules")
        else:
            assert_same(reply, alone[place], place)


def test_promise_27_batched_equals_unbatched(server: Server) -> None:
    """At once over the dynamic batcher, and as the rows of one request."""
    requests = rows(24, seed=27)
    alone = [send_grpc(server, message(*tensors)) for tensors in requests]
    before, asked = metric(server, "nv_inference_exec_count", model="recommend"), executed(server)
    for place, reply in enumerate(at_once(server, requests)):
        assert_same(reply, alone[place], place)
    batches = metric(server, "nv_inference_exec_count", model="recommend") - before
    assert batches < executed(server) - asked == 24, f"{batches} executions for 24 requests: nothing was batched"

    lengths = [tensors[1][2][1] for tensors in requests]
    histories = np.full((24, max(lengths)), NO_ID, np.int64)
    for row, tensors in zip(histories, requests, strict=True):
        row[: tensors[1][2][1]] = np.frombuffer(tensors[1][3], np.int64)
    together = message(
        ("user_id", "INT64", [24, 1], b"".join(tensors[0][3] for tensors in requests)),
        ("history", "INT64", list(histories.shape), histories.tobytes()),
        ("k", "INT32", [24, 1], b"".join(tensors[2][3] for tensors in requests)),
    )
    answer = outputs(send_grpc(server, together))
    for place, reply in enumerate(alone):
        for name, value in outputs(reply).items():
            mine = answer[name][place, : value.shape[1]]
            assert mine.tobytes() == value.tobytes(), f"{name} of row {place} differs"


def test_promise_28_nothing_is_cached(server: Server) -> None:
    """After a swap an old answer would be a lie; see also the swap in `test_19_24_lifecycle.py`."""
    config = json.loads(send_http(server, http_request("/v2/models/recommend/config", method="GET")).body)
    assert not config.get("response_cache", {}).get("enable", False)
    ran = executed(server)
    for _ in range(5):
        assert send_grpc(server, message(USER_TENSOR, K_TENSOR)).is_ok
    assert executed(server) - ran == 5, "an answer came from somewhere else"
    assert metric(server, "nv_cache_num_hits_per_model") == 0


def test_promise_29_retries_are_bounded(server: Server) -> None:
    """Against nobody: as often as was allowed, within the deadline. Against a refusal: once."""
    nobody = Address.free()
    with Recommender(f"127.0.0.1:{nobody.grpc_port}", timeout_ms=5_000, retries=3) as client:
        with pytest.raises(ServerUnavailable) as unavailable:
            client.recommend(user_id=5)
        assert unavailable.value.attempts == 4
    with Recommender(f"127.0.0.1:{server.address.grpc_port}", timeout_ms=5_000, retries=3) as client:
        ran = executed(server)
        with pytest.raises(InvalidRequest) as refused:
            client.recommend(user_id=5, text="no text is read here")
        assert refused.value.attempts == 1 and executed(server) - ran <= 1


def test_promise_29_a_repeated_request_is_answered_alike(server: Server) -> None:
    """A retry is safe since nothing is changed by a call."""
    replies = [send_grpc(server, message()) for _ in range(10)]
    assert {reply.body for reply in replies} == {replies[0].body}


def test_promise_29_retries_stay_in_their_budget() -> None:
    """An outage is not multiplied: of 300 calls that may each be retried three times, about 160 attempts are extra."""
    nobody = Address.free()
    attempts = 0
    with Recommender(f"http://127.0.0.1:{nobody.http_port}", timeout_ms=60_000, retries=3) as client:
        for _ in range(300):
            with pytest.raises(ServerUnavailable) as caught:
                client.recommend(user_id=5)
            attempts += caught.value.attempts
    # A full bucket of 100, a fifth of a token a call, and one a second.
    assert 300 < attempts <= 300 + 100 + 60 + 30, f"{attempts} attempts for 300 calls"
