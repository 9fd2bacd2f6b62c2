"""Promises 10 to 13: names that lead nowhere, numbers that are none, and texts of any characters."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from fuserec.client import ModelNotFound, Recommender
from fuserec.contract import NO_ID, NO_SCORE
from fuserec.serve.launcher import Server
from tests.serving.promises.raw import (
    K_FIELD,
    K_TENSOR,
    USER_FIELD,
    USER_TENSOR,
    Tensor,
    assert_refused,
    document,
    items,
    json_outputs,
    message,
    outputs,
    post,
    send_grpc,
    text,
)

pytestmark = pytest.mark.serving
NOWHERE = ("NOT_FOUND", "404")


@pytest.mark.parametrize("model", ["nobody", "", "recommend "])
def test_promise_10_unknown_model_is_not_found(server: Server, model: str) -> None:
    assert_refused(send_grpc(server, message(model=model)), "unknown model", statuses=NOWHERE)
    assert_refused(post(server, document(), f"/v2/models/{model.strip() or '%20'}x/infer"), "unknown", statuses=NOWHERE)


@pytest.mark.parametrize("version", ["2", "999999999999"])
def test_promise_10_unknown_version_is_not_found(server: Server, version: str) -> None:
    assert_refused(send_grpc(server, message(version=version)), f"version {version}", statuses=NOWHERE)
    path = f"/v2/models/recommend/versions/{version}/infer"
    assert_refused(post(server, document(), path), f"version {version}", statuses=NOWHERE)


@pytest.mark.parametrize("version", ["one", "-1", "9" * 20, "0x1"])
def test_promise_10_version_that_is_none_is_refused(server: Server, version: str) -> None:
    statuses = ("INVALID_ARGUMENT", *NOWHERE, "400")
    assert_refused(send_grpc(server, message(version=version)), "version", statuses=statuses)
    assert_refused(post(server, document(), f"/v2/models/recommend/versions/{version}/infer"), statuses=statuses)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_promise_10_our_client_never_retries_it(server: Server, scheme: str) -> None:
    """The repository has no ranker."""
    url = f"{scheme}://{server.address.host}:{server.address.ports[scheme]}"
    with Recommender(url, timeout_ms=10_000, retries=5) as client, pytest.raises(ModelNotFound) as caught:
        client.rank(user_id=5, candidates=[1000])
    assert caught.value.attempts == 1


TRAVERSALS = ["../recommend", "recommend/../../etc/passwd", "/etc/passwd", "recommend/1", "..", ".", "recommend/."]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_promise_11_names_are_no_paths(server: Server, name: str) -> None:
    assert_refused(send_grpc(server, message(model=name)), "unknown model", statuses=NOWHERE)
    for written in (name, name.replace("/", "%2f"), name.replace(".", "%2e").replace("/", "%2F")):
        reply = post(server, document(), f"/v2/models/{written}/infer")
        assert_refused(reply, statuses=(*NOWHERE, "400", "405"))
        assert b"root:" not in reply.body


@pytest.mark.parametrize("name", TRAVERSALS)
def test_promise_11_nothing_is_loaded_by_a_path(server: Server, name: str) -> None:
    """The repository API is the launcher's alone, whatever the name."""
    request = service_pb2.RepositoryModelLoadRequest(model_name=name)
    reply = send_grpc(server, request, method="/inference.GRPCInferenceService/RepositoryModelLoad")
    assert_refused(reply, "restricted", statuses=("UNAVAILABLE",))
    reply = post(server, b"{}", f"/v2/repository/models/{name.replace('/', '%2f')}/load")
    assert_refused(reply, statuses=("403", *NOWHERE))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_promise_12_nan_and_infinity_are_refused(server: Server, value: float) -> None:
    query: Tensor = ("query", "FP32", [1, 32], np.full((1, 32), value, np.float32).tobytes())
    assert_refused(send_grpc(server, message(query, K_TENSOR, model="search")), "NaN or infinite")
    field = {"name": "query", "datatype": "FP32", "shape": [1, 32], "data": [0.0] * 31 + [value]}
    assert_refused(post(server, document(field, K_FIELD), "/v2/models/search/infer"), "NaN or infinite")
    for rules in ({"boosts": {"Odd": value}}, {"diversity": value}, {"caps": {"Odd": value}}):
        tensor = ("rules", "BYTES", [1, 1], text(json.dumps(rules).encode()))
        assert_refused(send_grpc(server, message(USER_TENSOR, K_TENSOR, tensor)))


def test_promise_12_numbers_too_large_are_refused(server: Server) -> None:
    body = document({"name": "query", "datatype": "FP32", "shape": [1, 32], "data": [0] * 32}, K_FIELD)
    for number in (b"1e39", b"-1e39", b"1e999"):
        reply = post(server, body.replace(b"[0,", b"[" + number + b","), "/v2/models/search/infer")
        assert_refused(reply, statuses=("400", "500"))
    for rules in (b'{"boosts": {"Odd": 1e999}}', b'{"boosts": {"Odd": 1' + b"0" * 400 + b"}}"):
        assert_refused(send_grpc(server, message(USER_TENSOR, K_TENSOR, ("rules", "BYTES", [1, 1], text(rules)))))


def test_promise_12_answers_are_finite(server: Server) -> None:
    """Where nothing is left the id is none and the score is the lowest number, over HTTP as over gRPC."""
    k: Tensor = ("k", "INT32", [1, 1], np.int32(400).tobytes())
    over_grpc = outputs(send_grpc(server, message(USER_TENSOR, k)))
    over_http = json_outputs(post(server, document(USER_FIELD, K_FIELD | {"data": [400]})))
    none = over_grpc["item_ids"][0] == NO_ID
    assert none.any() and not none.all()
    for answer in (over_grpc, over_http):
        np.testing.assert_array_equal(answer["scores"][0] == np.float32(NO_SCORE), none)
        assert np.isfinite(answer["scores"]).all()
    for name, array in over_grpc.items():
        assert over_http[name].tobytes() == array.tobytes(), f"{name} differs between the two"


@pytest.mark.parametrize("category", ["Odd\0", "\0", "Ünïcödé ☃", "𝒪𝒹𝒹", "Odd\u202e", "e\u0301", "\ufeffOdd", "'\";--"])
def test_promise_13_texts_of_any_characters(server: Server, category: str) -> None:
    """A category that the catalogue lacks changes nothing and is counted; `Odd` with anything more is another one."""
    for ascii_only in (True, False):
        rules = json.dumps({"boosts": {category: 1e30}}, ensure_ascii=ascii_only).encode()
        tensor = ("rules", "BYTES", [1, 1], text(rules))
        answer = outputs(send_grpc(server, message(USER_TENSOR, K_TENSOR, tensor)))
        assert answer["item_ids"][0].tolist() == items(server) and answer["ignored"].tolist() == [[1]]
        field = {"name": "rules", "datatype": "BYTES", "shape": [1, 1], "data": [rules.decode()]}
        reply = post(server, document(USER_FIELD, K_FIELD, field))
        assert reply.is_ok and b'"name":"ignored","datatype":"INT32","shape":[1,1],"data":[1]' in reply.body, reply


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"\0", "rules"),
        (b'{"boosts": {"a\0b": 1}}', "rules"),
        (b'{"boosts": {"\\ud800": 1}}', "rules"),
    ],
    ids=["not UTF-8", "half of a surrogate pair", "NUL", "bare NUL in a string", "escaped half of a pair"],
)
def test_promise_13_what_is_no_text_is_refused(server: Server, data: bytes, words: str) -> None:
    reply = send_grpc(server, message(USER_TENSOR, K_TENSOR, ("rules", "BYTES", [1, 1], text(data))))
    if words == "rules" and reply.is_ok:
        assert outputs(reply)["ignored"].tolist() == [[1]], "half a surrogate pair is a category that nobody has"
    else:
        assert_refused(reply, words)


@pytest.mark.parametrize("name", ["a☃b", "ü" * 1000, "line\nline", "\x7f\x01"])
def test_promise_13_request_ids_come_back(server: Server, name: str) -> None:
    request = message()
    request.id = name
    reply = send_grpc(server, request)
    assert service_pb2.ModelInferResponse.FromString(reply.body).id == name
    assert json.loads(post(server, document(id=name)).body)["id"] == name


def test_promise_13_null_bytes_in_names_are_harmless(server: Server) -> None:
    """To server 2.51 a name ends there; it is refused or the same model, never another."""
    for model in ("recommend\0x", "\0recommend", "nobody\0recommend"):
        reply = send_grpc(server, message(model=model))
        if reply.is_ok:
            assert model.split("\0")[0] == "recommend" and outputs(reply)["item_ids"][0].tolist() == items(server)
        else:
            assert_refused(reply, statuses=NOWHERE)
    for name in ("user_id\0", "user_id\0x"):
        tensor: Tensor = (name, *USER_TENSOR[1:])
        reply = send_grpc(server, message(tensor, K_TENSOR))
        assert reply.is_ok or reply.status == "INVALID_ARGUMENT", reply
