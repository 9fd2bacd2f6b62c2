"""Log lines for people, or for a program: JSON, an object a line."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Mapping
from typing import Final, TextIO

TEXT: Final = "text"
JSON: Final = "json"
FORMATS: Final = (TEXT, JSON)


class LineFormatter(logging.Formatter):
    """Writes a record as one line.

    What a record tells beside its message comes as `logger.warning(..., extra={"fields": {...}})`.

    Args:
        form: `text` or `json`.
        about: What every line says of who writes it; in JSON only.
    """

    def __init__(self, form: str, about: Mapping[str, str | int] | None = None) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._form = form
        self._about = dict(about or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: Mapping[str, object] = getattr(record, "fields", {})
        if self._form == TEXT:
            return " ".join([super().format(record), *(f"{name}={value}" for name, value in fields.items())])
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        document: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._about,
            **fields,
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def log_to(stream: TextIO | None, form: str, **about: str | int) -> None:
    """Have this process log to a stream, stderr by default, in a format; what was set up before is replaced."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(form, about))
    logging.basicConfig(handlers=[handler], force=True)
