"""Malformed requests: random bytes, good requests with a wrong field, and good ones whose bytes were changed.

Left out is what server 2.51 is known to die of: sizes whose product wraps, over HTTP sizes from 2^31 on (it allocates
what they say), JSON of 100,000 levels, and floods of chunks. `tests/serving/promises` has them one by one, and what
brings it back.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tritonclient.grpc import service_pb2

from bench._raw import http_request

# Input fields by model: name, datatype, format of a value, values.
_Field = tuple[str, str, str, list[int]]
_USER: Final[_Field] = ("user_id", "INT64", "q", [5])
_HISTORY: Final[_Field] = ("history", "INT64", "q", [3, 50, 181])
_K: Final[_Field] = ("k", "INT32", "i", [3])
_REQUESTS: Final[list[tuple[str, list[_Field]]]] = [
    ("recommend", [_USER, _K]),
    ("recommend", [_USER, _HISTORY, ("exclude", "INT64", "q", [1, 2]), _K]),
    ("recommend", [_USER, ("allow", "INT64", "q", [1, 2, 3, 4]), ("history_only", "BOOL", "?", [1]), _K]),
    ("encode", [_USER, _HISTORY]),
    ("explain", [_USER, _HISTORY, ("item_id", "INT64", "q", [50])]),
]
_RULES: Final = b'{"boosts": {"Drama": 0.5}, "caps": {"*": 2}, "diversity": 0.3}'
_DATATYPES: Final = ["INT64", "INT32", "FP32", "BYTES", "BOOL", "FP16", "INT65", "", "int64", "\0"]
_SIZES: Final = [-1, -(2**31), -(2**63), 0, 2, 64, 65, 10_001, 2**31, 2**33, 2**62 + 1, 2**63 - 1]
# Over HTTP the server allocates what a shape says before it compares it with the data: small, or nothing else shows.
_JSON_SIZES: Final = [-1, -(2**31), -(2**63), 0, 2, 64, 65, 10_001]
_NAMES: Final = ["", "x", "user_id", "k", "..", "../k", "K", "☃", "\0", "a" * 300, "%s%n", "triton_x"]
_VALUES: Final[list[Any]] = [None, True, -1, 2**63, 2**64, 1.5, 1e308, "", "x", "5", [], [[]], {}, [None], {"a": []}]
_HEADERS: Final = ["Inference-Header-Content-Length", "Content-Encoding", "Accept-Encoding", "Expect", "X-" + "a" * 200]
_PATHS: Final = ["/v2/models/{}/infer", "/v2/models/{}/versions/{}/infer", "/v2/models/{}/{}", "/v2/{}", "/{}", "{}"]


@dataclass(frozen=True)
class Malformed:
    """One request.

    Attributes:
        protocol: "grpc" or "http".
        kind: "random", "structured" or "mutated".
        data: The message, or all bytes of the HTTP request.
        cut: Whether the connection must be half closed, since the length of the request may not be what it says.
    """

    protocol: str
    kind: str
    data: bytes
    cut: bool = False


def malformed(seed: int, place: int) -> Malformed:
    """Return a request; the same for the same arguments, whatever was asked for before."""
    generator = random.Random(f"{seed}/{place}")
    return generator.choice(_MAKERS)(generator)


def good(model: str = "recommend") -> bytes:
    """Return a well-formed gRPC message to a model."""
    fields = next(fields for name, fields in _REQUESTS if name == model)
    return bytes(_message(model, fields).SerializeToString())


def _message(model: str, fields: list[_Field], rules: bytes | None = None) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, datatype, form, values in fields:
        request.inputs.add(name=name, datatype=datatype, shape=[1, len(values)])
        request.raw_input_contents.append(struct.pack(f"<{len(values)}{form}", *values))
    if rules is not None:
        request.inputs.add(name="rules", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<I", len(rules)) + rules)
    return request


def _document(fields: list[_Field], rules: bytes | None = None) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = [
        {"name": name, "datatype": datatype, "shape": [1, len(values)], "data": values}
        for name, datatype, _, values in fields
    ]
    if rules is not None:
        inputs.append({"name": "rules", "datatype": "BYTES", "shape": [1, 1], "data": [rules.decode()]})
    return {"id": "1", "inputs": inputs}


def _pick(generator: random.Random) -> tuple[str, list[_Field], bytes | None]:
    model, fields = generator.choice(_REQUESTS)
    return model, fields, _RULES if model == "recommend" and generator.random() < 0.3 else None


def _change(generator: random.Random, data: bytes) -> bytes:
    """Return bytes with one to eight of: a bit flipped, a byte set, some removed, inserted, or doubled; or the end."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        start = generator.randrange(len(changed) + 1)
        stop = min(len(changed), start + generator.randint(1, 8))
        what = generator.randrange(6)
        if what == 0 and start < len(changed):
            changed[start] ^= 1 << generator.randrange(8)
        elif what == 1 and start < len(changed):
            changed[start] = generator.randrange(256)
        elif what == 2:
            del changed[start:stop]
        elif what == 3:
            changed[start:start] = generator.randbytes(generator.randint(1, 8))
        elif what == 4:
            changed[start:start] = changed[start:stop]
        elif generator.random() < 0.2:
            del changed[start:]
    return bytes(changed)


def _grpc_random(generator: random.Random) -> Malformed:
    return Malformed("grpc", "random", generator.randbytes(generator.choice([0, 1, 8, 64, 512, 4096])))


def _grpc_mutated(generator: random.Random) -> Malformed:
    return Malformed("grpc", "mutated", _change(generator, _message(*_pick(generator)).SerializeToString()))


def _grpc_structured(generator: random.Random) -> Malformed:
    request = _message(*_pick(generator))
    tensor = generator.choice(request.inputs)
    place = list(request.inputs).index(tensor)
    name = generator.choice(_NAMES)
    what = generator.randrange(14)
    if what == 0:
        tensor.datatype = generator.choice(_DATATYPES)
    elif what == 1:
        tensor.shape[generator.randrange(2)] = generator.choice(_SIZES)
    elif what == 2:
        tensor.shape[:] = [generator.choice([1, -1, 0, 3]) for _ in range(generator.randrange(5))]
    elif what == 3:
        tensor.name = name
    elif what == 4:
        request.raw_input_contents[place] = generator.randbytes(generator.randrange(40))
    elif what == 5:
        del request.raw_input_contents[place]
    elif what == 6:
        del request.inputs[place]
    elif what == 7:
        request.inputs.append(tensor)
        request.raw_input_contents.append(request.raw_input_contents[place])
    elif what == 8:
        request.model_name = name
    elif what == 9:
        request.model_version = generator.choice(["0", "-1", "2", "x", "9" * 30, "1.0", "\0"])
    elif what == 10:
        request.outputs.add(name=name).parameters["classification"].int64_param = generator.choice(_SIZES)
    elif what == 11:
        region = generator.choice([request, tensor]).parameters
        region["shared_memory_region"].string_param = name
        region["shared_memory_byte_size"].int64_param = generator.choice(_SIZES)
    elif what == 12:
        key = generator.choice(["timeout", "priority", "sequence_id", "sequence_start", "triton_x", "headers"])
        kind = generator.choice(["int64_param", "string_param", "double_param", "bool_param"])
        value: Any = {"string_param": name, "double_param": 1.5, "bool_param": True}.get(kind, generator.choice(_SIZES))
        setattr(request.parameters[key], kind, value)
    else:
        tensor.contents.int64_contents.extend(generator.choices(_SIZES, k=2))
        if generator.random() < 0.5:
            del request.raw_input_contents[:]
    return Malformed("grpc", "structured", request.SerializeToString())


def _http_random(generator: random.Random) -> Malformed:
    noise = generator.randbytes(generator.choice([1, 8, 64, 512, 4096]))
    if generator.random() < 0.5:
        return Malformed("http", "random", noise, cut=True)
    return Malformed("http", "random", http_request("/v2/models/recommend/infer", noise))


def _http_mutated(generator: random.Random) -> Malformed:
    model, fields, rules = _pick(generator)
    body = json.dumps(_document(fields, rules)).encode()
    path = f"/v2/models/{model}/infer"
    if generator.random() < 0.7:
        return Malformed("http", "mutated", http_request(path, _change(generator, body)))
    return Malformed("http", "mutated", _change(generator, http_request(path, body)), cut=True)


def _http_structured(generator: random.Random) -> Malformed:
    model, fields, rules = _pick(generator)
    document = _document(fields, rules)
    tensor = generator.choice(document["inputs"])
    path, headers, method = f"/v2/models/{model}/infer", {}, "POST"
    value, name = generator.choice(_VALUES), generator.choice(_NAMES)
    what = generator.randrange(10)
    if what == 0:
        tensor[generator.choice(["name", "datatype", "shape", "data", "parameters"])] = value
    elif what == 1:
        del tensor[generator.choice(["name", "datatype", "shape", "data"])]
    elif what == 2:
        tensor["shape"] = [generator.choice([1, 0, 3]) for _ in range(generator.randrange(4))]
        tensor["shape"].insert(generator.randrange(4), generator.choice(_JSON_SIZES))
    elif what == 3:
        tensor["data"] = [value]
    elif what == 4:
        tensor["name"] = name
    elif what == 5:
        tensor["datatype"] = generator.choice(_DATATYPES)
    elif what == 6:
        document[generator.choice(["id", "inputs", "outputs", "parameters"])] = value
    elif what == 7:
        tensor["parameters"] = {generator.choice(["binary_data_size", "shared_memory_region", "x"]): value}
    elif what == 8:
        path = "/" + generator.choice(_PATHS).format(*generator.choices(["recommend", "1", "..%2f", "%00", "a b"], k=2))
        path = path.replace("//", "/").replace(" ", "%20")
        method = generator.choice(["POST", "GET", "PUT", "DELETE", "HEAD", "FOO"])
    else:
        headers = {generator.choice(_HEADERS): generator.choice(["-1", "0", "7", "2" * 20, "gzip", "moon", "\xff"])}
    return Malformed(
        "http", "structured", http_request(path, json.dumps(document).encode(), method=method, headers=headers)
    )


_MAKERS: Final[list[Callable[[random.Random], Malformed]]] = [
    _grpc_random,
    _grpc_mutated,
    _grpc_structured,
    _http_random,
    _http_mutated,
    _http_structured,
]
