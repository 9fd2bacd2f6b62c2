"""Text and tables on a terminal or in a pipe: data verbatim, no cell cut, no character that the stream cannot show.

A terminal gets a frame, and long text folded inside its column. A pipe, a file or `TERM=dumb` gets plain columns, one
line a row, as `grep` and `awk` read them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Control characters move the cursor or recolour the screen, and these marks turn the direction of writing: a title
# that holds one could show another title in its place.
_CONTROLS: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_SHORT: Final = 20  # characters; a longer cell may fold over several lines
_NARROWEST: Final = 12  # characters that a folded column keeps

# Brackets and colons are data here, never markup or emoji.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def accept_any_text() -> None:
    """Let both streams escape what their encoding lacks, so that an ASCII terminal shows a title and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        # pytest and notebooks replace the streams by objects without it.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Return `text` with its control characters written as their codes."""
    return text.translate(_CONTROLS)


def verbatim(value: object, style: str = "") -> Text:
    """Return data as text that shows each character as itself, and control characters by their codes."""
    return Text(printable(str(value)), style=style)


def sign(symbol: str, plain: str, console: Console = out) -> str:
    """Return a symbol, or what stands for it where the stream has ASCII only."""
    return symbol if console.encoding.startswith("utf") else plain


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    console: Console = out,
) -> None:
    """Print a table.

    Args:
        headers: One a column; all empty for a table without a header line.
        rows: Cells in the order of `headers`; a `Text` keeps its style, all else is shown verbatim.
        title: A line above it.
        console: Where to.
    """
    cells = [[cell if isinstance(cell, Text) else verbatim(cell) for cell in row] for row in rows]
    titles = [verbatim(header) for header in headers]
    widths = [max(cell.cell_len for cell in column) for column in zip(titles, *cells, strict=True)]
    is_framed = console.is_terminal and not console.is_dumb_terminal
    if title is not None:
        console.print(verbatim(title, "italic" if is_framed else ""))
    if is_framed:
        _print_framed(titles, cells, widths, console)
    else:
        for row in [titles, *cells] if any(headers) else cells:
            # Padded here, as rich would cut a line at the width that it takes a pipe to have.
            line = [cell.plain + " " * (width - cell.cell_len) for cell, width in zip(row, widths, strict=True)]
            console.print("  ".join(line).rstrip())


def _print_framed(titles: list[Text], cells: list[list[Text]], widths: list[int], console: Console) -> None:
    table = Table(box=HEAVY_HEAD, show_header=any(title.plain for title in titles))
    least = 1  # the frame, and three columns of it and padding with each column
    for title, width in zip(titles, widths, strict=True):
        folds = width > _SHORT
        narrowest = _NARROWEST if folds else width
        least += narrowest + 3
        table.add_column(title, no_wrap=not folds, overflow="fold", min_width=narrowest)
    for row in cells:
        table.add_row(*row)
    # A table wider than the terminal wraps its lines; one that is narrower than its figures would cut them.
    if least > console.width:
        table.width = least
    console.print(table, crop=False, no_wrap=True, overflow="ignore")
