"""Texts in other encodings than UTF-8, written anew in UTF-8 before they are read."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

from fuserec.errors import DataError, UsageError

UTF8: Final = "utf-8"
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_HEAD_BYTES: Final = 1024
_CHUNK_BYTES: Final = 2**20


def check_encoding(name: str) -> str:
    """Return a codec's own name.

    Raises:
        UsageError: Python knows none of that name, or it is none of texts.
    """
    try:
        found = codecs.lookup(name)
        "".encode(name)
    except LookupError:
        raise UsageError(
            f"invalid --encoding={name}: must be an encoding of texts, such as cp1252, latin1 or utf-16"
        ) from None
    return found.name


def found_encoding(path: Path) -> str:
    """Return UTF-16 or UTF-32 where a file begins like it, with its mark or without one; else UTF-8."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    # In these a Latin letter is a byte of zero, and in UTF-8 no character is.
    zeros = [head[place::2].count(0) for place in (0, 1)]
    if max(zeros) > len(head) // 8:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return UTF8


def as_utf8(path: Path, encoding: str | None, scratch: Path) -> tuple[Path, str]:
    """Return a file that holds a text in UTF-8, `path` itself where that is one, and the encoding of `path`.

    Args:
        path: the text.
        encoding: as `check_encoding` returns it; None to look at the file.
        scratch: folder for a file that is written anew.

    Raises:
        DataError: It is not of that encoding; the message names the line.
    """
    codec = encoding or found_encoding(path)
    if codec == UTF8:
        return path, codec
    converted = scratch / f"{len(list(scratch.iterdir()))}-{path.name}"
    decoder, line = codecs.getincrementaldecoder(codec)(), 1
    with path.open("rb") as source, converted.open("wb") as target:
        while True:
            chunk = source.read(_CHUNK_BYTES)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: not {codec} from line {line} on ({error.reason}); expected another --encoding"
                ) from error
            target.write(text.removeprefix("\ufeff").encode())
            line += text.count("\n")
            if not chunk:
                return converted, codec
