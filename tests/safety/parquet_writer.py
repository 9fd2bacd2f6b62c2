"""A Parquet file of one column and one page, whose headers may claim what is not so."""

from __future__ import annotations

import struct

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
GZIP = 2
MAGIC = b"PAR1"
INT64 = 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _integer(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _text(value: bytes) -> bytes:
    return _varint(len(value)) + value


def _list(kind: int, *values: bytes) -> bytes:
    return bytes([len(values) << 4 | kind]) + b"".join(values)


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    out, last = b"", 0
    for number, kind, value in fields:
        out += bytes([(number - last) << 4 | kind]) + value
        last = number
    return out + b"\0"


def int64_file(
    *,
    page: bytes = struct.pack("<3q", 1, 2, 3),
    page_bytes: int | None = None,
    codec: int = 0,
    n_rows: int = 3,
    n_values: int | None = None,
    group_rows: int | None = None,
    column_bytes: int | None = None,
    page_at: int = 4,
    other_file: bool = False,
) -> bytes:
    """Return a file with the column `item_id`; what is not told is as it should be.

    Args:
        page: what the page holds, as it lies in the file.
        page_bytes: its size before it was compressed, as its header says.
        codec: of the page.
        n_rows: of the table, as the footer says.
        n_values: of the column.
        group_rows: of the only row group.
        column_bytes: size of the column before it was compressed.
        page_at: where the page begins.
        other_file: whether the column is said to be in another file.
    """
    n_values, group_rows = n_values or n_rows, n_rows if group_rows is None else group_rows
    in_page = _struct((1, I32, _integer(3)), (2, I32, _integer(0)), (3, I32, _integer(3)), (4, I32, _integer(3)))
    sizes = (2, I32, _integer(len(page) if page_bytes is None else page_bytes)), (3, I32, _integer(len(page)))
    body = _struct((1, I32, _integer(0)), *sizes, (5, STRUCT, in_page)) + page
    column = _struct(
        (1, I32, _integer(INT64)),
        (2, LIST, _list(I32, _integer(0))),
        (3, LIST, _list(BINARY, _text(b"item_id"))),
        (4, I32, _integer(codec)),
        (5, I64, _integer(n_values)),
        (6, I64, _integer(len(body) if column_bytes is None else column_bytes)),
        (7, I64, _integer(len(body))),
        (9, I64, _integer(page_at)),
    )
    elsewhere = [(1, BINARY, _text(b"/etc/passwd"))] if other_file else []
    chunk = _struct(*elsewhere, (2, I64, _integer(4)), (3, STRUCT, column))
    group = _struct((1, LIST, _list(STRUCT, chunk)), (2, I64, _integer(len(body))), (3, I64, _integer(group_rows)))
    root = _struct((4, BINARY, _text(b"root")), (5, I32, _integer(1)))
    leaf = _struct((1, I32, _integer(INT64)), (3, I32, _integer(0)), (4, BINARY, _text(b"item_id")))
    footer = _struct(
        (1, I32, _integer(1)),
        (2, LIST, _list(STRUCT, root, leaf)),
        (3, I64, _integer(n_rows)),
        (4, LIST, _list(STRUCT, group)),
    )
    return MAGIC + body + footer + len(footer).to_bytes(4, "little") + MAGIC
