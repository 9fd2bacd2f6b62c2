"""All subcommands, in the order of the road from data to an answer."""

from __future__ import annotations

from fuserec.cli import _ask, _compile, _data, _evaluate, _explain, _export, _import, _serve, _top, _traffic, _train  # noqa: F401  (importing them adds their commands)
from fuserec.cli._app import app

__all__ = ["app"]

_ORDER = (
    "train",
    "evaluate",
    "explain",
    "export",
    "inspect",
    "compile",
    "serve",
    "publish",
    "rollback",
    "traffic",
    "top",
    "recommend",
    "rank",
    "demo",
)
app.registered_commands.sort(
    key=lambda command: _ORDER.index(command.name or getattr(command.callback, "__name__", ""))
)
