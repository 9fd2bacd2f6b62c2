"""Promises 5 to 9: what is too deep, too large, too often or malformed is refused, and costs nothing lasting."""

from __future__ import annotations

import struct

import pytest

from bench._footprint import Footprint
from bench._raw import HTTP, Reply, http_request
from fuserec.serve.launcher import Server
from tests.serving.promises.conftest import Supervised
from tests.serving.promises.raw import (
    INFER_PATH,
    K_FIELD,
    K_TENSOR,
    USER_FIELD,
    USER_TENSOR,
    assert_refused,
    document,
    items,
    message,
    outputs,
    post,
    send_grpc,
    send_http,
    text,
)

pytestmark = pytest.mark.serving
MB = 2**20
REFUSED_SOMEHOW = ("400", "413", "500")


@pytest.mark.parametrize("depth", [100, 5_000])
def test_promise_05_nested_json_is_refused(server: Server, depth: int) -> None:
    before = items(server)
    for nested in (b"[" * depth + b"]" * depth, b"[" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        assert_refused(post(server, b'{"inputs":' + nested + b"}"), statuses=REFUSED_SOMEHOW)
        tensor = ("rules", "BYTES", [1, 1], text(nested))
        assert_refused(send_grpc(server, message(USER_TENSOR, K_TENSOR, tensor)), "rules")
    assert items(server) == before


def send_deep_json(server: Server) -> Reply:
    return post(server, b'{"inputs":' + b"[" * 400_000 + b"]" * 400_000 + b"}")


@pytest.mark.xfail(
    strict=True,
    reason="server 2.51 parses JSON by recursion and dies of 400,000 levels; kept since 26.05 (common pull request "
    "156), for the data of tensors since 25.06 at the latest (server pull request 8172)",
)
def test_promise_05_json_of_any_depth_is_refused(supervised: Supervised) -> None:
    assert_refused(supervised.suffer("deep JSON", send_deep_json), statuses=REFUSED_SOMEHOW)


def test_promise_05_our_layer_brings_back_what_died_of_deep_json(supervised: Supervised) -> None:
    assert not supervised.suffer("deep JSON", send_deep_json).is_ok


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_promise_06_oversized_request_is_refused_and_its_memory_returned(supervised: Supervised, protocol: str) -> None:
    """The limits of the contract are the model's: 2.51 itself takes any size (--http-max-input-size came in 2025)."""
    server, ids = supervised.server, 1_000_000
    size = 8 * ids
    field = {"name": "history", "datatype": "INT64", "shape": [1, ids], "parameters": {"binary_data_size": size}}
    head = document(USER_FIELD, K_FIELD, field)

    def send() -> None:
        if protocol == "grpc":
            reply = send_grpc(server, message(USER_TENSOR, K_TENSOR, ("history", "INT64", [1, ids], bytes(size))))
        else:
            reply = post(server, head + bytes(size), **{"Inference-Header-Content-Length": str(len(head))})
        assert_refused(reply, f"history came with {ids} ids a row, expected at most 10000")

    for _ in range(3):  # what is made once and kept
        send()
    before = Footprint.of(server.pid)
    for _ in range(24):
        send()
    grown = Footprint.of(server.pid) - before
    # An allocator keeps one here and there for its next; a leak would be all 24.
    assert grown.server_bytes < 8 * size and grown.models_bytes < 8 * size, f"24 of {size} bytes each left {grown}"
    assert grown.shm_bytes <= 2 * size and grown.shm_files == 0, grown


@pytest.mark.parametrize("length", [str(2**40), str(2**64), "-1", "ten", ""])
def test_promise_06_lengths_that_cannot_be_are_refused(server: Server, length: str) -> None:
    before = Footprint.of(server.pid)
    reply = send_http(server, http_request(INFER_PATH, document(), headers={"Content-Length": length}), end=True)
    assert reply.status in ("CLOSED", *REFUSED_SOMEHOW), reply
    assert (Footprint.of(server.pid) - before).server_bytes < 64 * MB


def chunked(chunks: int) -> bytes:
    head = f"POST {INFER_PATH} HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"1\r\n \r\n" * chunks + b"0\r\n\r\n"


def test_promise_07_memory_of_a_chunk_flood_is_returned(server: Server) -> None:
    assert_refused(send_http(server, chunked(50_000)), statuses=REFUSED_SOMEHOW)
    before = Footprint.of(server.pid)
    for _ in range(5):
        assert_refused(send_http(server, chunked(50_000)), statuses=REFUSED_SOMEHOW)
    grown = Footprint.of(server.pid) - before
    assert grown.server_bytes < 16 * MB, f"250,000 chunks left {grown.server_bytes / MB:.0f} MB"


def send_chunk_flood(server: Server) -> Reply:
    return send_http(server, chunked(1_000_000))


@pytest.mark.xfail(
    strict=True,
    reason="server 2.51 puts 16 bytes a chunk on its stack and dies of a million; kept since 25.08 at the latest "
    "(server pull request 8305), and a request is ended at 65,536 chunks since 26.05 (8770)",
)
def test_promise_07_chunk_flood_is_refused(supervised: Supervised) -> None:
    assert_refused(supervised.suffer("chunk flood", send_chunk_flood), statuses=REFUSED_SOMEHOW)


def test_promise_07_our_layer_brings_back_what_died_of_a_chunk_flood(supervised: Supervised) -> None:
    assert not supervised.suffer("chunk flood", send_chunk_flood).is_ok


HEADERS = {
    "100 kB": {"X-A": "a" * 100_000},
    "5000 of them": {f"X-{place}": "b" for place in range(5_000)},
    "control characters": {"X-A": "\x01\x02\x7f\xff"},
    "NUL": {"X-A": "a\0b"},
    "no name": {"": "x"},
    "unknown encoding": {"Content-Encoding": "moon"},
    "not gzip": {"Content-Encoding": "gzip"},
    "unknown expectation": {"Expect": "moon"},
    "accepts nothing": {"Accept-Encoding": "moon"},
    "two lengths": {"Transfer-Encoding": "chunked", "Content-Length": "5"},
    "header length -1": {"Inference-Header-Content-Length": "-1"},
    "header length 2^64": {"Inference-Header-Content-Length": str(2**64)},
    "header length a word": {"Inference-Header-Content-Length": "many"},
    "header length beyond": {"Inference-Header-Content-Length": "99999"},
    "no trace": {"traceparent": "00-zz"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_promise_08_bad_headers_are_harmless(server: Server, name: str) -> None:
    """Each is ignored, or refused with a text, or has its connection closed; the next call is answered as ever."""
    reply = send_http(
        server, http_request(INFER_PATH, document(), headers=HEADERS[name]), end="Transfer" in str(HEADERS[name])
    )
    assert reply.is_ok or reply.status == "CLOSED" or reply.error, reply
    assert not reply.is_ok or f'"shape":[1,{K_FIELD["data"][0]}]'.encode() in reply.body
    assert post(server, document()).is_ok


def test_promise_08_bad_metadata_is_harmless(server: Server) -> None:
    before = items(server)
    for metadata in (
        [("traceparent", "00-zz")],
        [("x-bin", bytes(256))],
        [("grpc-encoding", "moon")],
        [("a", "b" * 9_000)],
    ):
        reply = send_grpc(server, message(), metadata=metadata)
        assert reply.is_ok or reply.error, (metadata, reply)
    assert items(server) == before


@pytest.mark.parametrize(
    "data",
    [b"GARBAGE\r\n\r\n", bytes(100), bytes.fromhex("16030100a1") + bytes(161), b"GET /v2 HTTP/1.1\r\nfoo\r\n\r\n"],
    ids=["no verb", "NUL", "TLS", "no colon"],
)
def test_promise_08_what_is_no_http_has_its_connection_closed(server: Server, data: bytes) -> None:
    assert send_http(server, data, end=True).status == "CLOSED"
    assert post(server, document()).is_ok


def twice(server: Server, protocol: str) -> Reply:
    if protocol == "http":
        return post(server, document(outputs=[{"name": "item_ids"}] * 2))
    request = message()
    for _ in range(2):
        request.outputs.add(name="item_ids")
    return send_grpc(server, request)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.xfail(
    strict=True, reason="server 2.51 takes a duplicate output for one; kept since 26.05 (core pull request 493)"
)
def test_promise_09_duplicate_outputs_are_refused(server: Server, protocol: str) -> None:
    assert_refused(twice(server, protocol))


def test_promise_09_duplicate_outputs_are_harmless(server: Server) -> None:
    assert list(outputs(twice(server, "grpc"))) == ["item_ids"]
    assert outputs(twice(server, "grpc"))["item_ids"][0].tolist() == items(server)
    assert post(server, document()).is_ok


@pytest.mark.parametrize("name", ["triton_", "triton_final_response", "triton_x"])
def test_promise_09_reserved_parameters_are_refused(server: Server, name: str) -> None:
    request = message()
    request.parameters[name].bool_param = True
    assert_refused(send_grpc(server, request), "reserved")
    assert_refused(post(server, document(parameters={name: True})), "reserved")


@pytest.mark.parametrize(("name", "value"), [("timeout", "x"), ("priority", -1), ("sequence_start", 5)])
def test_promise_09_known_parameters_of_another_type_are_refused(server: Server, name: str, value: object) -> None:
    request = message()
    setattr(request.parameters[name], "string_param" if isinstance(value, str) else "int64_param", value)
    assert_refused(send_grpc(server, request), name)
    assert_refused(post(server, document(parameters={name: value})), name, statuses=("400", "500"))


def test_promise_08_a_connection_survives_what_was_refused_on_it(server: Server) -> None:
    with HTTP(server.address) as connection:
        for body in (b"{", b"", b"[]", b"\xff" * 10, struct.pack("<q", 5)):
            assert_refused(connection.send(http_request(INFER_PATH, body)), statuses=REFUSED_SOMEHOW)
            assert connection.send(http_request(INFER_PATH, document())).is_ok
