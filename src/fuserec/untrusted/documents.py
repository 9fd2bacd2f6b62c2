"""Texts and JSON of anybody's making."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Final

# Configurations, metrics and headers nest a handful of levels; beyond, whatever walks the value would run out of stack.
MAX_DEPTH: Final = 64
_INT64: Final = range(-(2**63), 2**63)


def read_bytes(path: Path, limit_bytes: int, error: type[ValueError]) -> bytes:
    """Return what a file holds.

    Args:
        path: an ordinary file, or a link to one: a pipe would block, and a device would never end.
        limit_bytes: what no honest file of this kind reaches; no more is read.
        error: what is raised.

    Raises:
        error: There is no such file, it cannot be read, or it is larger.
    """
    try:
        if not path.is_file():
            raise error(
                f"{path} cannot be read: it is missing or not a file; expected one of at most {limit_bytes} bytes"
            )
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror})") from reason
    if len(content) > limit_bytes:
        raise error(f"{path} has more than {limit_bytes} bytes; expected at most so many")
    return content


def read_text(path: Path, limit_bytes: int, error: type[ValueError]) -> str:
    """Return a UTF-8 text; see `read_bytes`.

    Raises:
        error: It cannot be read, is larger, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit_bytes, error).decode("utf-8")
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not UTF-8 ({reason}); expected a text") from reason


def read_json(path: Path, limit_bytes: int, error: type[ValueError]) -> dict[str, Any]:
    """Return the JSON object that a file holds; see `read_bytes` and `parse_json`.

    Raises:
        error: It cannot be read, is larger, or is not what `parse_json` takes.
    """
    content = read_bytes(path, limit_bytes, error)
    try:
        return parse_json(content)
    except ValueError as reason:
        raise error(f"{path} {reason}") from reason


def parse_json(content: bytes | str, *, any_number: bool = False) -> dict[str, Any]:
    """Return a JSON object of which every reader makes the same.

    Args:
        content: UTF-8.
        any_number: whether NaN, infinity and integers beyond 64 bits may occur, which only Python's own reader takes.

    Raises:
        ValueError: It is not JSON or no object, repeats a name, nests deeper than `MAX_DEPTH`, holds NaN, infinity, a
            number beyond 64 bits or half of a surrogate pair; the message begins with a verb.
    """
    try:
        if isinstance(content, bytes):
            content = content.decode("utf-8")
        value = json.loads(content, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as reason:  # also what a byte that is not UTF-8 raises
        raise ValueError(f"is not JSON ({reason}); expected a JSON object") from reason
    if not isinstance(value, dict):
        raise ValueError(f"holds a JSON {type(value).__name__}; expected a JSON object")
    _check(value, MAX_DEPTH, any_number)
    return value


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r:.80} is there twice")
    return named


def _check(value: Any, levels: int, any_number: bool) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError(f"nests deeper than {MAX_DEPTH} levels; expected at most so many")
        if isinstance(value, dict):
            for name in value:
                _check(name, levels, any_number)
        for one in value.values() if isinstance(value, dict) else value:
            _check(one, levels - 1, any_number)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(f"holds half of a surrogate pair, in {value[:40]!r}; expected texts that are Unicode")
    elif isinstance(value, float) and not any_number and not math.isfinite(value):
        raise ValueError(f"holds the number {value}; expected finite ones")
    elif isinstance(value, int) and not any_number and value not in _INT64:
        raise ValueError("holds an integer beyond 64 bits; expected at most so many")
