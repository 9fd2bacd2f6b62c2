"""The input tensors of a request, checked: what the server lets through is not always what the configuration says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuserec import contract
from fuserec.serve.users import NO_IDS

# The tensors of a request by name.
Inputs = dict[str, Any]


def required(inputs: Inputs, name: str) -> NDArray[Any]:
    """Return a required input; the server has checked its dtype against the configuration.

    That it came at all is checked here: to the server, an optional input makes up for the one that is missing.
    """
    if name not in inputs:
        raise ValueError(f"{name} did not come, expected it in every request")
    array = matrix(name, inputs[name])
    if array.shape[0] == 0:
        raise ValueError(f"{name} came with 0 rows, expected at least 1")
    return array


def matrix(name: str, tensor: Any) -> NDArray[Any]:
    """Return the value of an input.

    Servers before core pull request 434 keep the number of rows in 32 bits: with a multiple of 2^32 a request passes
    as one without a batch axis.
    """
    array: NDArray[Any] = tensor.as_numpy()
    if array.ndim != 2:
        raise ValueError(f"{name} came with shape {array.shape}, expected rows and columns")
    return array


def checked_k(inputs: Inputs, rows: int) -> list[int]:
    """Return k a row."""
    ks: list[int] = required(inputs, contract.K)[:, 0].tolist()
    same_rows(contract.K, len(ks), rows)
    if min(ks) < 1 or max(ks) > contract.MAX_K:
        wrong = next(k for k in ks if not 1 <= k <= contract.MAX_K)
        raise ValueError(f"invalid {contract.K}={wrong}: must be 1 to {contract.MAX_K:,}")
    return ks


def id_lists(inputs: Inputs, name: str, rows: int, limit: int) -> list[NDArray[np.int64]]:
    """Return an optional list of ids a row, without the padding."""
    tensor = inputs.get(name)
    if tensor is None:
        return [NO_IDS] * rows
    array: NDArray[np.int64] = matrix(name, tensor)
    same_rows(name, len(array), rows)
    if array.shape[1] > limit:
        raise ValueError(f"{name} came with {array.shape[1]} ids a row, expected at most {limit}")
    if not array.size:
        return [NO_IDS] * rows
    return [row[row != contract.NO_ID] for row in array]


def switches(inputs: Inputs, name: str, rows: int) -> list[bool]:
    """Return an optional switch a row; off where it did not come."""
    tensor = inputs.get(name)
    if tensor is None:
        return [False] * rows
    array: NDArray[np.bool_] = matrix(name, tensor)[:, 0]
    same_rows(name, len(array), rows)
    return [bool(value) for value in array]


def strings(inputs: Inputs, name: str, rows: int, limit: int) -> list[str]:
    """Return an optional text a row; empty where it did not come."""
    tensor = inputs.get(name)
    if tensor is None:
        return [""] * rows
    array: NDArray[np.object_] = matrix(name, tensor)[:, 0]
    same_rows(name, len(array), rows)
    try:
        texts = [bytes(value).decode("utf-8") for value in array]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error.reason} at byte {error.start})") from None
    longest = max(map(len, texts))
    if longest > limit:
        raise ValueError(f"{name} came with {longest} characters, expected at most {limit}")
    return texts


def same_rows(name: str, came: int, expected: int) -> None:
    """Raise `ValueError` unless an input has as many rows as the others."""
    if came != expected:
        raise ValueError(f"{name} came with {came} rows, expected {expected}")
