"""Who asks for what, and the bytes of each call: made before the load begins, so that sending costs next to nothing."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from fuserec.client import Query
from fuserec.client._tensors import DATATYPES
from fuserec.client._wire import Tensors, check, pack

K: Final = 10
MAX_GIVEN: Final = 200
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True)
class Workload:
    """How calls are drawn.

    Attributes:
        calls: How many different ones; a load goes through them again and again.
        zipf: The r-th user, in an order of chance, asks with a probability proportional to r ** -zipf.
        with_history: Share of the calls that bring a history of their own; the others say who asks and nothing else.
        seed: Of the generator.
    """

    calls: int = 4096
    zipf: float = 1.0
    with_history: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise ValueError(f"calls came as {self.calls}, expected at least 1")
        if not 0.0 <= self.with_history <= 1.0:
            raise ValueError(f"with_history came as {self.with_history}, expected a share, 0 to 1")

    def draw(self, users: pl.DataFrame) -> list[Call]:
        """Draw calls of real users; a history is the beginning of what its user really had, 0 to 200 items of it.

        Args:
            users: `user_id` int64 and `history`, lists of item ids, oldest first.
        """
        rng = np.random.default_rng(self.seed)
        ids, histories = users["user_id"].to_list(), users["history"].to_list()
        weights = np.arange(1, len(ids) + 1, dtype=np.float64) ** -self.zipf
        ranked = rng.permutation(len(ids))
        drawn = ranked[rng.choice(len(ids), self.calls, p=weights / weights.sum())]
        given = rng.random(self.calls) < self.with_history
        lengths = np.where(given, rng.integers(0, MAX_GIVEN + 1, self.calls), 0)
        return [
            Call(ids[row], tuple(histories[row][:length])) for row, length in zip(drawn, lengths.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Call:
    """One call: the `K` best for a user, who may bring a history."""

    user_id: int
    history: tuple[int, ...]

    def grpc(self, model: str) -> bytes:
        """Return it as a serialized `ModelInferRequest`, with the tensors that `fuserec.client` sends."""
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelInferRequest(model_name=model)
        for name, array in self._tensors().items():
            request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        serialized: bytes = request.SerializeToString()
        return serialized

    def http(self, model: str) -> bytes:
        """Return it as an HTTP request of the server's own protocol, JSON in and out as the rival's."""
        inputs = [
            {"name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape, "data": array.ravel().tolist()}
            for name, array in self._tensors().items()
        ]
        return _post(f"/v2/models/{model}/infer", {"inputs": inputs})

    def rival(self) -> bytes:
        """Return it as an HTTP request to the rival; what is off is not sent, as a user would have it."""
        body: dict[str, Any] = {"user_id": self.user_id, "k": K}
        return _post("/recommend", body | ({"history": self.history} if self.history else {}))

    def _tensors(self) -> Tensors:
        return pack([check(Query(user_id=self.user_id, history=self.history, k=K))])


def _post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


def write_bodies(path: Path, bodies: Sequence[bytes]) -> None:
    """Write the bytes of calls, each after its length, for the process that sends them."""
    with path.open("wb") as file:
        for body in bodies:
            file.write(_LENGTH.pack(len(body)) + body)


def read_bodies(path: Path) -> Iterator[bytes]:
    """Yield what `write_bodies` wrote."""
    data = path.read_bytes()
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield data[at : at + length]
        at += length
