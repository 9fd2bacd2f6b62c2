"""What a text encoder is given to read of an item."""

from __future__ import annotations

from typing import Any

import polars as pl


def item_texts(items: pl.DataFrame) -> list[str]:
    """Return one text an item, in the order of `items`: its own text as it stands, or "title. genres. year".

    What is unknown is left out; of an item of which nothing is known the text is empty.
    """
    return [_text(item) for item in items.iter_rows(named=True)]


def _text(item: dict[str, Any]) -> str:
    own = str(item.get("text") or "")
    if own.strip():
        return own
    parts = (item["title"].strip(), ", ".join(item["genres"]), "" if item["year"] is None else str(item["year"]))
    return ". ".join(part for part in parts if part)
