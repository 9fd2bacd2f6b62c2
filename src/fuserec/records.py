"""JSON that somebody else may have written, as frozen dataclasses: every field is there, none is unknown, types fit."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def from_json(kind: type[T], value: object, where: str = "") -> T:
    """Return a JSON value as the type that is asked for.

    Args:
        kind: a dataclass, whose fields are read in turn, or `str`, `bool`, `int`, `float`, `Any`, `list[...]`,
            `dict[str, ...]`, or one of these `| None`.
        value: what `json.loads` returned.
        where: name of the value, for the message.

    Raises:
        ValueError: It is of another type, or a dataclass refused it; the message names the field.
    """
    return typing.cast(T, _read(kind, value, where))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        [inner] = [one for one in arguments if one is not types.NoneType]
        return None if value is None else _read(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, where)
    if origin is list:
        return [_read(arguments[0], one, f"{where}[{place}]") for place, one in enumerate(_of(list, value, where))]
    if origin is dict:
        return {name: _read(arguments[1], one, f"{where}.{name}") for name, one in _of(dict, value, where).items()}
    if kind is float and type(value) is int:
        return float(value)
    return _of(kind, value, where)


def _read_fields(kind: Any, value: object, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    expected = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    came = _of(dict, value, where)
    if different := sorted(came.keys() ^ expected.keys()):
        what = "lacks" if different[0] in expected else "has an unknown field"
        raise ValueError(f"{where or 'it'} {what} {different[0]!r}")
    prefix = f"{where}." if where else ""
    return kind(**{name: _read(inner, came[name], prefix + name) for name, inner in expected.items()})


def _of(kind: type, value: Any, where: str) -> Any:
    # Not isinstance: to Python a bool is an int.
    if type(value) is not kind:
        raise ValueError(f"{where or 'it'} is a {type(value).__name__}, expected a {kind.__name__}")
    return value
