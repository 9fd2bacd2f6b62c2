"""As much of Thrift's compact protocol as the footer of a Parquet file needs: numbers, and structs within structs.

What is not asked for is stepped over without being kept. Format: "Thrift compact protocol encoding", Apache Thrift
documentation.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_INTEGERS: Final = (I16, I32, I64)
_MAX_DEPTH: Final = 16
_MAX_VARINT_BYTES: Final = 10


class Compact:
    """A position in bytes that are read in order.

    Args:
        data: the bytes.
        at: where to begin.
        stop: where they end.

    Raises:
        ValueError: from every method, where the bytes end or make no sense.
    """

    def __init__(self, data: bytes | mmap.mmap, at: int, stop: int) -> None:
        self._data = data
        self._stop = stop
        self.at = at

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield number and type of each field of a struct; each must be read or skipped before the next."""
        number = 0
        while header := self._byte():
            kind = header & 15
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            yield number, kind

    def integer(self, kind: int) -> int:
        """Return an integer."""
        if kind not in _INTEGERS:
            raise ValueError(f"has a field of type {kind} where an integer belongs")
        return self._zigzag()

    def structs(self, kind: int) -> Iterator[None]:
        """Yield once for each struct of a list, whose `fields` must be read before the next."""
        if kind != LIST:
            raise ValueError(f"has a field of type {kind} where a list belongs")
        length, element = self._list_header()
        if element != STRUCT:
            raise ValueError(f"has a list of type {element} where structs belong")
        for _ in range(length):
            yield

    def text(self, kind: int) -> bytes:
        """Return a binary."""
        if kind != BINARY:
            raise ValueError(f"has a field of type {kind} where a text belongs")
        return self._take(self._varint())

    def skip(self, kind: int, depth: int = _MAX_DEPTH) -> None:
        """Step over a value."""
        if not depth:
            raise ValueError(f"nests deeper than {_MAX_DEPTH} levels")
        if kind in (TRUE, FALSE):  # a field's value is its type
            return
        if kind in _INTEGERS:
            self._varint()
        elif kind in (BYTE, DOUBLE):
            self._take(1 if kind == BYTE else 8)
        elif kind == BINARY:
            self._take(self._varint())
        elif kind in (LIST, SET):
            length, element = self._list_header()
            for _ in range(length):
                self._skip_element(element, depth)
        elif kind == MAP:
            self._skip_map(depth)
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth - 1)
        else:
            raise ValueError(f"has a field of the unknown type {kind}")

    def _skip_map(self, depth: int) -> None:
        if length := self._varint():
            kinds = self._byte()
            for _ in range(length):
                self._skip_element(kinds >> 4, depth)
                self._skip_element(kinds & 15, depth)

    def _skip_element(self, kind: int, depth: int) -> None:
        # In a collection a bool is a byte of its own. So every element takes a byte at least, and no length that is
        # claimed can make this run past the end.
        self.skip(BYTE if kind in (TRUE, FALSE) else kind, depth - 1)

    def _list_header(self) -> tuple[int, int]:
        header = self._byte()
        return (self._varint() if header >> 4 == 15 else header >> 4), header & 15

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        if self.at + count > self._stop:
            raise ValueError(f"ends {self.at + count - self._stop} bytes too early")
        self.at += count
        return self._data[self.at - count : self.at]

    def _varint(self) -> int:
        value = 0
        for place in range(_MAX_VARINT_BYTES):
            byte = self._byte()
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                return value
        raise ValueError("has an integer beyond 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
