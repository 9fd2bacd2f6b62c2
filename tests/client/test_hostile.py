"""Whatever a server says, the client ends in time with an error of its tree, holds it against that server, and goes on.

The servers are real second processes; the bytes are real answers, cut off, changed and made up.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from fuserec.client import ClientError, MalformedAnswer, Query, Recommendations, ServerFault, ServerUnavailable
from tests.client.hostile import answering
from tests.client.servers import Asking, clients, schemes, serving, urls

K = 3
OUTPUTS: dict[str, np.ndarray] = {
    "item_ids": np.array([[11, 12, 13]]),
    "scores": np.array([[0.5, 0.25, 0.125]], np.float32),
    "fallback": np.array([[False]]),
    "ignored": np.array([[0]], np.int32),
    "version": np.array([[7]]),
}
NAMES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "bool": "BOOL"}


def grpc_answer(outputs: dict[str, np.ndarray], version: str = "7") -> bytes:
    response = service_pb2.ModelInferResponse(model_name="recommend", model_version=version)
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=NAMES[array.dtype.name], shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response.SerializeToString()


def http_document(outputs: dict[str, np.ndarray], **changes: object) -> bytes:
    described = [
        {
            "name": name,
            "datatype": NAMES[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in outputs.items()
    ]
    return json.dumps({"model_name": "recommend", "model_version": "7", "outputs": described} | changes).encode()


def http_answer(outputs: dict[str, np.ndarray], **changes: object) -> bytes:
    document = http_document(outputs, **changes)
    body = document + b"".join(array.tobytes() for array in outputs.values())
    return http(body, f"Inference-Header-Content-Length: {len(document)}")


def http(body: bytes, *fields: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def changed(**outputs: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: array for name, array in (OUTPUTS | outputs).items() if array is not None}


ANSWERS: dict[str, Callable[..., bytes]] = {"grpc": grpc_answer, "http": http_answer}


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Callable[[str, bytes], str]]:
    """Return what starts a server that answers with given bytes."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(scheme: str, answer: bytes) -> str:
            file = tmp_path / f"{scheme}.answer"
            file.write_bytes(answer)
            return stack.enter_context(answering(scheme, file))

        yield start


WRONG = {
    "another service": (changed(item_ids=None), "without 'item_ids'"),
    "nothing": ({}, "without 'item_ids'"),
    "doubled": (changed(item_ids=np.array([[11, 11, 13]])), "there twice"),
    "excluded": (changed(item_ids=np.array([[11, 50, 13]])), "excluded"),
    "in the history": (changed(item_ids=np.array([[11, 60, 13]])), "excluded"),
    "not allowed": (changed(item_ids=np.array([[11, 12, 99]])), "not allowed"),
    "negative": (changed(item_ids=np.array([[11, -7, 13]])), "no item ids"),
    "an item behind the end": (changed(item_ids=np.array([[11, -1, 13]])), "no item ids"),
    "ids that are no numbers": (changed(item_ids=np.array([[1.0, 2.0, 3.0]], np.float32)), "expected int64"),
    "NaN": (changed(scores=np.array([[0.5, np.nan, 0.1]], np.float32)), "scores that are no numbers"),
    "infinite": (changed(scores=np.array([[np.inf, 0.5, 0.1]], np.float32)), "scores that are no numbers"),
    "too few": (changed(item_ids=np.array([[11]])), "1 items and 3 scores"),
    "too many": (changed(scores=np.zeros((1, 4), np.float32)), "3 items and 4 scores"),
    "no rows": (changed(item_ids=np.empty((0, 3), np.int64)), "expected int64 of shape"),
    "another user's too": (changed(item_ids=np.array([[11, 12, 13], [14, 15, 16]])), "expected int64 of shape"),
    "flat": (changed(item_ids=np.array([11, 12, 13])), "expected int64 of shape"),
    "a switch that is a number": (changed(fallback=np.array([[0]], np.int32)), "'fallback' as int32"),
    "a column of two": (changed(ignored=np.zeros((1, 2), np.int32)), "'ignored' of shape"),
}
ASKED = {"user_id": 1, "k": K, "exclude": [50], "history": [60], "allow": [11, 12, 13, 50, 60]}


@clients
@schemes
def test_wrong_content_is_refused_and_another_server_asked(scheme: str, client: str, tmp_path: Path) -> None:
    """One process, whose answer changes; all of it within the tree, with the fallback, and with a second server."""
    file = tmp_path / "answer"
    with answering(scheme, file) as url, serving(scheme) as servers:
        right = {"user_id": 1, "k": K}
        for name, (outputs, message) in WRONG.items():
            file.write_bytes(ANSWERS[scheme](outputs))
            with Asking(client, url, retries=0, timeout_ms=10_000) as asking:
                with pytest.raises(MalformedAnswer, match=message) as caught:
                    asking.recommend(**ASKED)
                assert caught.value.endpoint == url, name
            with Asking(client, url, retries=0, timeout_ms=10_000, fallback=lambda error, query: [5]) as asking:
                assert asking.recommend(**ASKED).source == "client", name
        file.write_bytes(ANSWERS[scheme](changed(item_ids=None)))
        with Asking(client, [url, *urls(servers)], timeout_ms=10_000) as asking:
            for _ in range(20):
                assert asking.recommend(**right).item_ids.tolist() == [1000, 1001, 1002]
            health = asking.client._caller.balancer._healths[0]
            assert health.ejected_at is not None, "the server that answers nonsense still counts as healthy"


@clients
@schemes
def test_right_answer_of_the_same_process_is_taken(
    scheme: str, client: str, hostile: Callable[[str, bytes], str]
) -> None:
    """Else the tests here would show nothing."""
    with Asking(client, hostile(scheme, ANSWERS[scheme](OUTPUTS)), retries=0, timeout_ms=10_000) as asking:
        answer = asking.recommend(**ASKED)
    assert (list(answer), answer.version) == ([(11, 0.5), (12, 0.25), (13, 0.125)], 7)


HTTP_BYTES = {
    "nothing": (b"", "closed without an answer"),
    "gRPC": (b"\0\0\x12\4\0\0\0\0\0\0\4\0?\xff\xff", "no HTTP.*port of gRPC"),
    "garbage": (b"\xff\xfe\0" * 50, "no HTTP"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
    "a page of a proxy": (http(b"<html>sign in</html>", "Content-Type: text/html"), "no JSON.*fuserec server"),
    "an error page": (http(b"<html>", status="404 Not Found"), "404 otherwise than a fuserec server"),
    "a list": (http(b"[1, 2]"), "no JSON object"),
    "a number": (http(b"7"), "no JSON object"),
    "no outputs": (http(b'{"model_version": "1"}'), "no outputs"),
    "outputs of another kind": (http(b'{"outputs": {"a": 1}}'), "no outputs"),
    "an output of another kind": (http(b'{"outputs": [7]}'), "no object"),
    "an output without a name": (http(b'{"outputs": [{"shape": [1], "datatype": "INT64"}]}'), "lacks name"),
    "the version a number": (http(b'{"outputs": [], "model_version": 7}'), "no outputs"),
    "brackets": (http(b"[" * 60_000), "no JSON"),
    "a long number": (http(b"9" * 60_000), "no JSON"),
    "not UTF-8": (http(b'{"outputs": "\xff"}'), "no JSON"),
    "a shape of texts": (
        http(b'{"outputs": [{"name": "item_ids", "shape": ["1"], "datatype": "INT64", "data": [1]}]}'),
        "came with shape",
    ),
    "a huge shape": (
        http(b'{"outputs": [{"name": "x", "shape": [99999999999, 99999999999], "datatype": "INT64", "data": []}]}'),
        "0 values for shape",
    ),
    "a negative shape": (
        http(b'{"outputs": [{"name": "x", "shape": [-1, -1], "datatype": "INT64", "data": [1]}]}'),
        "came with shape",
    ),
    "a number beyond int64": (
        http(b'{"outputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [%d]}]}' % 2**70),
        "no INT64",
    ),
    "ids that are texts": (
        http(b'{"outputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": ["7"]}]}'),
        "plain list of INT64",
    ),
    "ids that are fractions": (
        http(b'{"outputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [7.5]}]}'),
        "plain list of INT64",
    ),
    "no data": (http(b'{"outputs": [{"name": "x", "shape": [1], "datatype": "INT64"}]}'), "plain list of INT64"),
    "an output twice": (
        http(b'{"outputs": [%s, %s]}' % ((b'{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}',) * 2)),
        "twice",
    ),
    "binary of another size": (
        http(b'{"outputs": [{"name": "x", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}}]}'),
        "binary_data_size 8",
    ),
    "bytes behind the outputs": (http(b'{"outputs": []}zz', "Inference-Header-Content-Length: 15"), "2 bytes more"),
    "a header length beyond": (http(b"{}", "Inference-Header-Content-Length: 99"), "Content-Length '99' and 2 bytes"),
    "a header length of words": (http(b"{}", "Inference-Header-Content-Length: two"), "'two' and 2 bytes"),
    "cut off": (http(b"{}", length=500), "ended in the middle"),
    "a negative length": (http(b"{}", length=-5), "content-length '-5'"),
    "an absurd length": (http(b"{}", length=10**15), "has more than the"),
    "two lengths": (http(b"{}", "Content-Length: 9"), "twice"),
    "a length and chunks": (http(b"{}", "Transfer-Encoding: chunked"), "transfer-encoding 'chunked'"),
    "chunks of words": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n{}\r\n0\r\n\r\n",
        "size b'many'",
    ),
    "a chunk beyond": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n", "has more than the"),
    "a long chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}xx\r\n", "longer than it says"),
    "compressed garbage": (http(b"zzzzzz", "Content-Encoding: gzip"), "cannot be decompressed"),
    "an unknown coding": (http(b"zz", "Content-Encoding: br"), "encoded as 'br'"),
    "a header without a name": (b"HTTP/1.1 200 OK\r\n: x\r\n\r\n", "has a header"),
    "headers without an end": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "no HTTP"),
    "a status of words": (b"HTTP/1.1 fine\r\n\r\n", "no HTTP"),
    "continue for ever": (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, "says 100"),
    "switching": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "ended in the middle"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "204"),
}


@clients
def test_bytes_that_are_no_answer(client: str, tmp_path: Path) -> None:
    file = tmp_path / "answer"
    with answering("http", file) as url:
        for name, (raw, message) in HTTP_BYTES.items():
            file.write_bytes(raw)
            with Asking(client, url, retries=0, timeout_ms=10_000) as asking:
                begin = time.monotonic()
                with pytest.raises((MalformedAnswer, ServerUnavailable, ServerFault), match=message) as caught:
                    asking.recommend(user_id=1, k=K)
                assert time.monotonic() - begin < 9, f"{name}: it ended at the deadline"
                assert caught.value.endpoint == url and str(caught.value).isprintable(), name
                assert asking.client._caller.balancer._healths[0].failures == 1, f"{name} does not count as a failure"


@clients
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(client: str, status: int, hostile: Callable[[str, bytes], str]) -> None:
    with serving("http") as servers:
        away = f"Location: {urls(servers)[0]}/v2/models/recommend/infer"
        url = hostile("http", http(b"", away, status=f"{status} Elsewhere"))
        with (
            Asking(client, url, retries=0, timeout_ms=10_000, token="s3cret") as asking,
            pytest.raises(MalformedAnswer, match=f"redirects \\({status}\\) to http.*not followed"),
        ):
            asking.recommend(user_id=1, k=K)
        assert not servers[0].seen, "the call went to where the redirect leads"


@clients
@schemes
def test_bomb_is_refused_before_it_is_decompressed(scheme: str, client: str, tmp_path: Path) -> None:
    """A thousand times its size: neither the memory nor the time goes to it."""
    file = tmp_path / "answer.zeros"
    file.write_text(str(300_000_000))
    with answering(scheme, file) as url, Asking(client, url, retries=0, timeout_ms=60_000) as asking:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ServerFault, match="has more than the" if scheme == "http" else "ompress"):
            asking.recommend(user_id=1, k=K)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000, f"it took {grown // 1000} MB"


@clients
@schemes
def test_texts_of_a_server_are_one_line_without_control_characters(scheme: str, client: str) -> None:
    from tests.client.servers import refuse

    with serving(scheme) as servers, Asking(client, urls(servers), retries=0) as asking:
        servers[0].behave = refuse("INTERNAL", message="bad\x1b[2J\nERROR: \u202eall is lost\x00" + "x" * 3_000)
        with pytest.raises(ServerFault) as caught:
            asking.recommend(user_id=1)
    said = str(caught.value)
    assert said.isprintable() and r"bad\x1b[2J\n" in said and len(said) < 1_500


def mutated(scheme: str) -> st.SearchStrategy[bytes]:
    """Return real answers cut off, with bytes changed, cut out and put in."""
    real = ANSWERS[scheme](OUTPUTS)

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        raw = real
        for begin, length, piece in edits:
            begin = begin % (len(raw) + 1)
            raw = raw[:begin] + piece + raw[begin + length :]
        return raw

    edit = st.tuples(st.integers(0, 10_000), st.integers(0, 8), st.binary(max_size=8))
    return st.one_of(
        st.integers(0, len(real)).map(lambda end: real[:end]), st.lists(edit, min_size=1, max_size=4).map(apply)
    )


@clients
@schemes
def test_only_errors_of_the_tree_leave_the_client(scheme: str, client: str, tmp_path: Path) -> None:
    file = tmp_path / "answer"
    outcomes = {"refused": 0, "taken": 0}
    with answering(scheme, file) as url, Asking(client, url, retries=0, timeout_ms=20_000) as asking:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(mutated(scheme))
        def check(raw: bytes) -> None:
            file.write_bytes(raw)
            try:
                answer = asking.recommend(**ASKED)
            except ClientError as error:
                assert str(error).isprintable()
                outcomes["refused"] += 1
            else:
                assert isinstance(answer, Recommendations)
                assert answer.item_ids.shape == (K,) and not {50, 60} & set(answer.item_ids.tolist())
                assert answer.version is None or isinstance(answer.version, int)
                outcomes["taken"] += 1

        check()
    assert outcomes["refused"] > 20, f"mutations had no effect: {outcomes}"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_answers_about_candidates_and_histories_are_checked(scheme: str, tmp_path: Path) -> None:
    ranked = {
        "item_ids": np.array([[3, 1]]),
        "scores": np.array([[0.5, 0.25]], np.float32),
        "ratings": np.array([[4.0, 3.0]], np.float32),
        "ignored": np.array([[0]], np.int32),
    }
    explained = {
        "item_ids": np.array([[60, 61]]),
        "contributions": np.array([[0.5, -0.25]], np.float32),
        "score": np.array([[1.0]], np.float32),
        "baseline": np.array([[0.5]], np.float32),
    }
    file = tmp_path / "answer"
    with answering(scheme, file) as url, Asking("sync", url, retries=0, timeout_ms=10_000) as asking:

        def rank(**outputs: np.ndarray) -> object:
            file.write_bytes(ANSWERS[scheme](ranked | outputs))
            return asking.rank(candidates=[1, 2, 3])

        def explain(**outputs: np.ndarray) -> object:
            file.write_bytes(ANSWERS[scheme](explained | outputs))
            return asking.explain(item_id=9, history=[60, 61])

        assert list(rank()) == [(3, 0.5), (1, 0.25)]  # type: ignore[call-overload]
        assert list(explain()) == [(60, 0.5), (61, -0.25)]  # type: ignore[call-overload]
        for wrong, message in (
            ({"item_ids": np.array([[3, 3]])}, "too often"),
            ({"item_ids": np.array([[3, 9]])}, "no candidates"),
            ({"scores": np.array([[np.nan, 1.0]], np.float32)}, "not 2 numbers"),
            ({"ratings": np.array([[4.0]], np.float32)}, "not 2 numbers"),
        ):
            with pytest.raises(MalformedAnswer, match=message):
                rank(**wrong)
        for wrong, message in (
            ({"item_ids": np.array([[60, 99]])}, "not in the history"),
            ({"score": np.array([[np.inf]], np.float32)}, "not 2 numbers"),
            ({"contributions": np.array([[1.0]], np.float32)}, "not 2 numbers"),
        ):
            with pytest.raises(MalformedAnswer, match=message):
                explain(**wrong)


def test_query_of_many_rows_is_checked_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "answer"
    two = {name: np.concatenate([array, array]) for name, array in OUTPUTS.items()}
    file.write_bytes(grpc_answer(two))
    with answering("grpc", file) as url, Asking("sync", url, retries=0, timeout_ms=10_000) as asking:
        assert len(asking.recommend_many([Query(k=K), Query(k=2)])) == 2
        with pytest.raises(MalformedAnswer, match="excluded"):
            asking.recommend_many([Query(k=K), Query(k=2, exclude=[12])])
        # Beyond its own k nothing of a row is looked at.
        assert len(asking.recommend_many([Query(k=K), Query(k=2, exclude=[13])])) == 2
