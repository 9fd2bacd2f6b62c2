"""Promises 1 to 4: tensors that are not what they say are refused as INVALID_ARGUMENT, and nothing dies of them."""

from __future__ import annotations

import struct

import pytest

from fuserec.serve.launcher import Server
from tests.serving.promises.conftest import Supervised
from tests.serving.promises.raw import (
    K_FIELD,
    K_TENSOR,
    USER_FIELD,
    USER_TENSOR,
    assert_refused,
    document,
    items,
    message,
    post,
    send_grpc,
    text,
)

pytestmark = pytest.mark.serving
EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        pytest.param([("user_id", "FP64", [1, 1], EIGHT), K_TENSOR], "data-type is 'FP64'", id="dtype"),
        pytest.param([("user_id", "INT65", [1, 1], EIGHT), K_TENSOR], "data-type", id="no such dtype"),
        pytest.param([("user_id", "", [1, 1], EIGHT), K_TENSOR], "data-type", id="empty dtype"),
        pytest.param([("user_id", "INT64", [1], EIGHT), K_TENSOR], "unexpected shape", id="rank"),
        pytest.param([("user_id", "INT64", [], EIGHT), K_TENSOR], "no shape", id="no shape"),
        pytest.param([("user_id", "INT64", [1, 2], 2 * EIGHT), K_TENSOR], "unexpected shape", id="shape"),
        pytest.param([("user_id", "INT64", [2, 1], 2 * EIGHT), K_TENSOR], "batch size does not match", id="rows"),
        pytest.param(
            [("user_id", "INT64", [65, 1], 65 * EIGHT), ("k", "INT32", [65, 1], 260 * b"\1")], "<= 64", id="batch"
        ),
        pytest.param([USER_TENSOR], "missing required", id="missing"),
        # Server 2.51 only counts them.
        pytest.param([USER_TENSOR, ("history", "INT64", [1, 1], EIGHT)], "k did not come", id="missing, optional came"),
        pytest.param([K_TENSOR, ("history", "INT64", [1, 1], EIGHT)], "user_id did not come", id="nobody asks"),
        pytest.param([USER_TENSOR, K_TENSOR, ("other", "INT64", [1, 1], EIGHT)], "'other'", id="unknown"),
        pytest.param([USER_TENSOR, USER_TENSOR, K_TENSOR], "already exists", id="twice"),
    ],
)
def test_promise_01_wrong_dtype_or_shape_is_an_invalid_argument(server: Server, tensors: list, words: str) -> None:
    assert_refused(send_grpc(server, message(*tensors)), words)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        pytest.param({"datatype": "FP64"}, "data-type is 'FP64'", id="dtype"),
        pytest.param({"shape": [1]}, "unexpected shape", id="rank"),
        pytest.param({"shape": [1, 2], "data": [1, 2]}, "unexpected shape", id="shape"),
    ],
)
def test_promise_01_over_http(server: Server, field: dict, words: str) -> None:
    assert_refused(post(server, document(USER_FIELD | field, K_FIELD)), words)


@pytest.mark.parametrize("size", [0, 4, 7, 9, 16])
def test_promise_02_bytes_must_match_the_shape(server: Server, size: int) -> None:
    reply = send_grpc(server, message(("user_id", "INT64", [1, 1], bytes(size)), K_TENSOR))
    assert_refused(reply, f"Expected 8, got {size}")


@pytest.mark.parametrize("data", [[], [5, 6], [[5], [6]]])
def test_promise_02_elements_must_match_the_shape_over_http(server: Server, data: list) -> None:
    # 2.51 calls it an internal error (500).
    assert_refused(post(server, document(USER_FIELD | {"data": data}, K_FIELD)), "shape", statuses=("400", "500"))


def test_promise_02_texts_must_match_the_shape(server: Server) -> None:
    for data in (b"\1\0", struct.pack("<I", 2**32 - 1) + b"x", text(b"") * 2, b""):
        reply = send_grpc(server, message(USER_TENSOR, K_TENSOR, ("rules", "BYTES", [1, 1], data)))
        assert_refused(reply, "string")


@pytest.mark.parametrize("size", [2**63 - 1, 2**60, 2**60 + 1, 2**33])
def test_promise_03_sizes_that_overflow_are_refused(server: Server, size: int) -> None:
    reply = send_grpc(server, message(USER_TENSOR, K_TENSOR, ("history", "INT64", [1, size], EIGHT)))
    assert_refused(reply)
    reply = send_grpc(server, message(("user_id", "INT64", [size, 1], EIGHT), K_TENSOR))
    assert_refused(reply)


@pytest.mark.parametrize("rows", [2**32, -(2**32), -(2**63)])
def test_promise_03_rows_that_wrap_to_none_are_refused(server: Server, rows: int) -> None:
    """Server 2.51 keeps their number in 32 bits (core pull request 434, 25.06 at the latest); our models refuse it."""
    before = items(server)
    tensors = [("user_id", "INT64", [rows, 1], EIGHT), ("k", "INT32", [rows, 1], K_TENSOR[-1])]
    assert_refused(send_grpc(server, message(*tensors)))
    assert items(server) == before


# What kills server 2.51: over gRPC the process of the model, which our supervisor opens again, over HTTP all of it.
DEADLY = {
    "2^64 elements over gRPC": lambda server: send_grpc(
        server, message(USER_TENSOR, K_TENSOR, ("history", "INT64", [1, 2**61], b""))
    ),
    "2^44 elements over HTTP": lambda server: post(
        server,
        document(USER_FIELD, K_FIELD, {"name": "history", "datatype": "INT64", "shape": [1, 2**44], "data": [5]}),
    ),
}


@pytest.mark.parametrize("name", DEADLY)
@pytest.mark.xfail(
    strict=True,
    reason="server 2.51 takes a product that wraps at 2^64, or over HTTP at 2^32, for a small one, and dies of it; "
    "kept since 25.06 at the latest (server pull request 8182), over HTTP since 26.03 at the latest (8676)",
)
def test_promise_03_products_that_wrap_are_refused(supervised: Supervised, name: str) -> None:
    assert_refused(supervised.suffer(name, DEADLY[name]))


@pytest.mark.parametrize("name", DEADLY)
def test_promise_03_our_layer_brings_back_what_died_of_a_product(supervised: Supervised, name: str) -> None:
    reply = supervised.suffer(name, DEADLY[name])
    assert not reply.is_ok, "what cannot be was answered"


@pytest.mark.parametrize("shape", [[-1, 1], [1, -1], [-1, -1], [-2, -4]])
def test_promise_04_negative_dimensions_are_refused(server: Server, shape: list[int]) -> None:
    before = items(server)
    for name in ("user_id", "history"):
        tensors = [USER_TENSOR] * (name != "user_id")
        assert_refused(send_grpc(server, message(*tensors, K_TENSOR, (name, "INT64", shape, EIGHT))))
        fields = [USER_FIELD] * (name != "user_id")
        body = document(*fields, K_FIELD, {"name": name, "datatype": "INT64", "shape": shape, "data": [5]})
        assert_refused(post(server, body), "shape", statuses=("400", "500"))
    assert items(server) == before
