"""An attempt to serve another version, in a thread of its own: nothing that is served waits for it or fails with it."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from fuserec.errors import FuserecError
from fuserec.serve.launcher import Server

logger = logging.getLogger(__name__)

VERIFYING: Final = "its files are compared with their hashes"
OPENING: Final = "its models are opened"


class _Cancelled(Exception):
    """The attempt was called off."""


class Attempt:
    """Verifies a version, opens it beside the served one, and has it answer; begins when it is made.

    Args:
        server: Serves another version.
        version: The candidate.

    Attributes:
        state: What is done at the moment.
        error: Why it is over without success; None while it lasts and where it succeeded.
        is_cancelled: Whether it was called off, so that `error` says nothing of the version.
    """

    def __init__(self, server: Server, version: int) -> None:
        self.version = version
        self.state = VERIFYING
        self.error: Exception | None = None
        self.is_cancelled = False
        self.began = time.monotonic()
        self._server = server
        self._opening_since: float | None = None
        self._blame: str | None = None
        # A daemon: a file system that hangs must not keep the launcher from ending.
        self._thread = threading.Thread(target=self._run, name=f"fuserec-version-{version}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    @property
    def opening_s(self) -> float:
        """For how long its models have been opened; 0 before that."""
        return 0.0 if self._opening_since is None else time.monotonic() - self._opening_since

    def cancel(self, blame: str | None = None) -> None:
        """Call it off; to be repeated until it is over, since the server may start another process of it.

        Args:
            blame: What the version did wrong; None where it is not to blame.
        """
        if not self.is_cancelled:
            self._blame = blame
        self.is_cancelled = True
        if self._opening_since is not None:
            self._server.end_candidate(self.version)

    def wait(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(seconds)

    @property
    def blame(self) -> str | None:
        """What is wrong with the version; None where it is served, or was called off for something else."""
        if self.is_cancelled:
            return self._blame
        return None if self.error is None else str(self.error)

    def _check(self) -> None:
        if self.is_cancelled:
            raise _Cancelled

    def _run(self) -> None:
        try:
            manifest = self._server.versions.verified(self.version, self._check)
            self._check()
            if not self._server.can_be_steered:
                return
            self.state, self._opening_since = OPENING, time.monotonic()
            self._server.turn_to(manifest, self._check)
        except _Cancelled as error:
            self.error = error
        except FuserecError as error:
            self.error = error
        except Exception as error:  # whatever a version does, the served one goes on
            logger.exception("version %d met an error that nobody expected", self.version)
            self.error = RuntimeError(f"{type(error).__name__}: {error!s:.300}")
