"""Starts the process that sends the load and tells it what to send."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

from bench.serving.load import Load, Outcome

ROOT: Final = Path(__file__).resolve().parents[2]


class Generator:
    """A process of its own, so that the load is not held up by what this one does; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.serving._generate"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()  # ends its input, and with it the process

    def run(self, load: Load) -> Outcome:
        """Send a load and wait for what came of it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(load)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with exit status {self._process.wait()}; stderr says why")
        return Outcome(**json.loads(line))
