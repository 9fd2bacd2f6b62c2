"""Who is measured: where each listens, what is sent there, and what it answers."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.serving.callers import METHOD
from bench.serving.noop import NOOP
from bench.serving.rival import RivalServer
from bench.serving.workload import Call, write_bodies
from fuserec.contract import ITEM_IDS, RECOMMEND, SCORES
from fuserec.serve.launcher import Server

OURS: Final = "fuserec"
OURS_HTTP: Final = "fuserec http"
NO_OP: Final = "no-op"
# Scores that are this near may change places: the two sum in another order.
TIE: Final = 1e-5
_CHECKED: Final = 100


@dataclass(frozen=True)
class Contender:
    """One way to be answered.

    Attributes:
        name: As the rows have it.
        protocol: `grpc` or `http`.
        port: On loopback.
        pid: Of the process that started all of its processes.
        bodies: File of the calls' bytes.
        model: Name on the inference server; None for the rival.
        metrics_port: Of the inference server; None for the rival.
    """

    name: str
    protocol: str
    port: int
    pid: int
    bodies: Path
    model: str | None = None
    metrics_port: int | None = None

    def batches(self) -> tuple[float, float]:
        """Return how many rows its model has answered so far and in how many batches; (0, 0) for the rival."""
        if self.metrics_port is None:
            return 0.0, 0.0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return self._sum(text, "nv_inference_count"), self._sum(text, "nv_inference_exec_count")

    def _sum(self, text: str, metric: str) -> float:
        lines = re.findall(rf'^{metric}{{[^}}]*model="{self.model}"[^}}]*}} (\S+)$', text, re.MULTILINE)
        return sum(map(float, lines))


def ours(server: Server, calls: Sequence[Call], folder: Path, *, http: bool, noop: bool) -> list[Contender]:
    """Return the contenders that a running server holds, and write what they are sent into a folder."""
    address = server.address
    wanted = [(OURS, "grpc", RECOMMEND, address.grpc_port, [call.grpc(RECOMMEND) for call in calls])]
    if http:
        wanted.append((OURS_HTTP, "http", RECOMMEND, address.http_port, [call.http(RECOMMEND) for call in calls]))
    if noop:
        wanted.append((NO_OP, "grpc", NOOP, address.grpc_port, [call.grpc(NOOP) for call in calls]))
    found = []
    for name, protocol, model, port, bodies in wanted:
        path = folder / f"{model}.{protocol}"
        write_bodies(path, bodies)
        found.append(Contender(name, protocol, port, server.pid, path, model, address.metrics_port))
    return found


def rival(server: RivalServer, calls: Sequence[Call], folder: Path) -> Contender:
    """Return a running rival as a contender."""
    path = folder / "rival.http"
    write_bodies(path, [call.rival() for call in calls])
    return Contender(server.setup.name, "http", server.port, server.pid, path)


def check_same(contenders: Sequence[Contender], calls: Sequence[Call]) -> int:
    """Ask all contenders the first calls and compare the answers with those of the first one.

    Returns:
        How many calls were compared.

    Raises:
        SystemExit: An answer differs by more than the order of ties.
    """
    checked = calls[:_CHECKED]
    want = [_answer(contenders[0], call) for call in checked]
    for other in contenders[1:]:
        for call, (ids, scores) in zip(checked, want, strict=True):
            its_ids, its_scores = _answer(other, call)
            if not _agree(ids, scores, its_ids, its_scores):
                raise SystemExit(
                    f"{contenders[0].name} and {other.name} do not give the same answer to {call}: {ids.tolist()} with "
                    f"{scores.tolist()}, and {its_ids.tolist()} with {its_scores.tolist()}; nothing was measured"
                )
    return len(checked)


def agreement(contenders: Sequence[Contender], calls: Sequence[Call]) -> float:
    """Return the share of items that the contenders have in common with the first one, over the first calls."""
    checked = calls[:_CHECKED]
    want = [set(_answer(contenders[0], call)[0].tolist()) for call in checked]
    shares = [
        len(expected & set(_answer(other, call)[0].tolist())) / max(1, len(expected))
        for other in contenders[1:]
        for call, expected in zip(checked, want, strict=True)
    ]
    return float(np.mean(shares))


def _agree(
    ids: NDArray[np.int64], scores: NDArray[np.float32], its_ids: NDArray[np.int64], its_scores: NDArray[np.float32]
) -> bool:
    """Return whether two lists are the same, but for the order of ties."""
    if len(ids) != len(its_ids) or not np.allclose(scores, its_scores, rtol=0, atol=TIE):
        return False
    # An id that moved has neighbours of its own score on the way; one that is in one list only ties with the last.
    for mine, score in zip(ids.tolist(), scores.tolist(), strict=True):
        place = np.flatnonzero(its_ids == mine)
        other = float(its_scores[place[0]]) if len(place) else float(its_scores[-1])
        if abs(other - score) > 2 * TIE:
            return False
    return True


def _answer(contender: Contender, call: Call) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids and scores that a contender gives, from the very bytes that the load consists of."""
    if contender.model is None:
        answer = json.loads(_post(contender.port, call.rival()))
        found = answer["item_ids"], answer["scores"]
    elif contender.protocol == "http":
        outputs = json.loads(_post(contender.port, call.http(contender.model)))["outputs"]
        by_name = {output["name"]: output["data"] for output in outputs}
        found = by_name[ITEM_IDS], by_name[SCORES]
    else:
        found = _over_grpc(contender.port, call.grpc(contender.model))
    return np.array(found[0], dtype=np.int64), np.array(found[1], dtype=np.float32)


def _post(port: int, request: bytes) -> bytes:
    head, _, content = request.partition(b"\r\n\r\n")
    path = head.split(b" ")[1].decode()
    made = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", content, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(made, timeout=10) as answer:
        body: bytes = answer.read()
    return body


def _over_grpc(port: int, request: bytes) -> tuple[Any, Any]:
    import grpc
    from tritonclient.grpc import service_pb2

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = service_pb2.ModelInferResponse.FromString(channel.unary_unary(METHOD)(request, timeout=10))
    raw = {output.name: content for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    return np.frombuffer(raw[ITEM_IDS], dtype=np.int64), np.frombuffer(raw[SCORES], dtype=np.float32)
