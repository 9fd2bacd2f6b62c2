"""Requests to `recommend` piece by piece, so that any of them can be wrong, and what a server says of itself."""

from __future__ import annotations

import json
import re
import struct
import urllib.request
from typing import Any, NoReturn

import numpy as np
from tritonclient.grpc import service_pb2

from bench._raw import GRPC, HTTP, Reply, http_request
from fuserec.serve.launcher import Server

INFER_PATH = "/v2/models/recommend/infer"
USER = 5
K = 3
REFUSED = ("INVALID_ARGUMENT", "400")
NUMPY_TYPES = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
# name, datatype, shape, bytes
Tensor = tuple[str, str, list[int], bytes]
USER_TENSOR: Tensor = ("user_id", "INT64", [1, 1], struct.pack("<q", USER))
K_TENSOR: Tensor = ("k", "INT32", [1, 1], struct.pack("<i", K))
USER_FIELD = {"name": "user_id", "datatype": "INT64", "shape": [1, 1], "data": [USER]}
K_FIELD = {"name": "k", "datatype": "INT32", "shape": [1, 1], "data": [K]}


def message(*tensors: Tensor, model: str = "recommend", version: str = "") -> Any:
    """Return a `ModelInferRequest`; a good one where no tensors are given."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, datatype, shape, data in tensors or (USER_TENSOR, K_TENSOR):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    return request


def text(value: bytes) -> bytes:
    """Return one element of a BYTES tensor."""
    return struct.pack("<I", len(value)) + value


def document(*inputs: dict[str, Any], **others: Any) -> bytes:
    """Return a request in JSON; a good one where no inputs are given."""
    return json.dumps({"inputs": list(inputs) or [USER_FIELD, K_FIELD], **others}).encode()


def send_grpc(server: Server, request: Any, **options: Any) -> Reply:
    with GRPC(server.address) as channel:
        return channel.send(request if isinstance(request, bytes) else request.SerializeToString(), **options)


def send_http(server: Server, data: bytes, *, end: bool = False) -> Reply:
    with HTTP(server.address) as connection:
        return connection.send(data, end=end)


def post(server: Server, body: bytes, path: str = INFER_PATH, **headers: str) -> Reply:
    return send_http(server, http_request(path, body, headers=headers))


def outputs(reply: Reply) -> dict[str, np.ndarray]:
    """Return the outputs of a gRPC answer."""
    assert reply.status == "OK", reply
    response = service_pb2.ModelInferResponse.FromString(reply.body)
    return {
        output.name: np.frombuffer(raw, NUMPY_TYPES[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def json_outputs(reply: Reply) -> dict[str, np.ndarray]:
    """Return the outputs of an HTTP answer, read as strictly as JavaScript, Go and Java do.

    RFC 8259 knows neither Infinity nor NaN, which Python's parser takes for numbers.
    """

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON: {reply.body[:500]!r}")

    assert reply.status == "200", reply
    return {
        output["name"]: np.array(output["data"], NUMPY_TYPES[output["datatype"]]).reshape(output["shape"])
        for output in json.loads(reply.body, parse_constant=refuse)["outputs"]
    }


def items(server: Server) -> list[int]:
    """Return what is recommended to the user of the good request."""
    ids: list[int] = outputs(send_grpc(server, message()))["item_ids"][0].tolist()
    return ids


def assert_refused(reply: Reply, words: str = "", *, statuses: tuple[str, ...] = REFUSED) -> None:
    assert reply.status in statuses, f"came as {reply.status} {reply.body[:200]!r}, expected one of {statuses}"
    assert reply.error, f"no text in {reply}"
    assert re.search(words, reply.error), f"{words!r} is not in {reply.error!r}"


def metric(server: Server, name: str, **labels: str) -> float:
    """Return the sum of the samples of a metric that have the labels."""
    url = f"http://{server.address.host}:{server.address.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    samples = [line for line in lines if re.match(rf"{name}[{{ ]", line) and all(label in line for label in wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


def executed(server: Server, model: str = "recommend") -> float:
    """Return how many requests a model has been given."""
    return metric(server, "nv_inference_count", model=model)
