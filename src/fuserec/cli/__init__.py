"""The `fuserec` command: each subcommand reads its options and calls one room; rooms are imported when called.

This module imports nothing of the command, so that an install without it, and Ctrl-C at any moment, end in a line.
"""

from __future__ import annotations

import json
import sys
from typing import Final, NoReturn

from fuserec.errors import FuserecError, UsageError

INTERRUPTED: Final = 130  # what shells report of a command that Ctrl-C ended

# The extra that a missing package belongs to. Several extras hold the same packages, hence the commands below.
EXTRA_OF_PACKAGE: Final = {
    "transformers": "text",
    "peft": "text",
    "opacus": "privacy",
    "torch": "train",
    "lightning": "train",
    "onnx": "export",
    "tensorrt_rtx": "export",
    "numba": "serve",
    "onnxruntime": "serve",
    "pytriton": "serve",
}
EXTRA_OF_COMMAND: Final = {
    "train": "train",
    "import": "train",
    "export": "export",
    "serve": "serve",
    "demo": "train,export,serve",
}
_RECIPE_EXTRAS: Final = ("text", "privacy")  # what some recipes need beyond the extra of their command
_CLI: Final = "cli"


def main() -> None:
    """Run the command.

    A fault that the user can mend is one line on stderr, with status 2 where the usage was wrong and 1 otherwise; under
    `--json` it is also a document on stdout. Ctrl-C ends with status 130.
    """
    try:
        from fuserec.cli._commands import app
        from fuserec.terminal import accept_any_text

        accept_any_text()
        app()
    except UsageError as error:
        _fail(error, 2)
    except FuserecError as error:
        _fail(error, 1)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "fuserec":
            raise
        hint = f"{missing} is not installed: pip install 'fuserec[{extra_for(missing, sys.argv[1:2])}]'"
        _fail(UsageError(hint), 2)
    except KeyboardInterrupt:
        sys.stderr.write("fuserec: interrupted\n")
        sys.exit(INTERRUPTED)


def extra_for(package: str, command: list[str]) -> str:
    """Return the extra to install where a command (none or one word) misses a package."""
    of_package = EXTRA_OF_PACKAGE.get(package)
    if of_package in _RECIPE_EXTRAS:
        return str(of_package)
    of_command = EXTRA_OF_COMMAND.get(command[0]) if command else None
    return of_command or of_package or _CLI


def _fail(error: FuserecError, status: int) -> NoReturn:
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}) + "\n")
    sys.stderr.write(f"fuserec: {error}\n")
    sys.exit(status)
