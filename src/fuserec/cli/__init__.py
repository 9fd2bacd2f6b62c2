"""The `fuserec` command: each subcommand reads its options and calls one room; rooms are imported when called."""

from __future__ import annotations

import sys
from typing import NoReturn

from fuserec.cli import _ask, _compile, _data, _evaluate, _explain, _export, _import, _serve, _top, _traffic, _train  # noqa: F401  (importing them adds their commands)
from fuserec.cli._app import app
from fuserec.errors import FuserecError, UsageError

# Packages whose absence means that an extra was not installed.
EXTRA_OF = {
    "torch": "train",
    "lightning": "train",
    "torchmetrics": "train",
    "captum": "train",
    "tensorboard": "train",
    "yaml": "train",
    "transformers": "text",
    "peft": "text",
    "opacus": "privacy",
    "onnx": "export",
    "onnxruntime": "serve",
    "numba": "serve",
    "safetensors": "serve",
    "tokenizers": "serve",
    "polars": "cli",
    "prometheus_client": "cli",
    "rich": "cli",
}


# In the order of the road from data to an answer.
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


def main() -> None:
    """Run the command; a fault that the user can mend is one line on stderr, with status 2 if the usage was wrong."""
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except FuserecError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'fuserec[{extra}]'", 1)


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"fuserec: {message}\n")
    sys.exit(status)
