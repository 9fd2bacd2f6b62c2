"""Questions to a server, in a thread of their own over a connection that is kept: is it still answering?"""

from __future__ import annotations

import threading
import time

from fuserec.errors import FuserecError, ServerOverloaded
from fuserec.serve.launcher import Server


class Canary:
    """Asks again and again.

    The connection is made once: a server that has no file descriptor left for another one still answers here.

    Args:
        server: It is running.
        every_s: Between an answer and the next question.
        timeout_s: For an answer.
    """

    def __init__(self, server: Server, every_s: float, timeout_s: float) -> None:
        self._server, self._every_s, self._timeout_s = server, every_s, timeout_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fuserec-canary", daemon=True)
        self.misses = 0
        self.last_error = ""
        self.since = time.monotonic()

    def start(self) -> Canary:
        """Begin to ask."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End; a question under way is left to itself."""
        self._stop.set()

    def forgive(self) -> None:
        """Count from now on: what went before has another reason."""
        self.misses, self.since = 0, time.monotonic()

    def _run(self) -> None:
        with self._server.asking(1e3 * self._timeout_s) as client:
            while not self._stop.wait(self._every_s):
                try:
                    self._server.ask(client, self._server.manifest)
                except ServerOverloaded:  # it has too much to do, and says so
                    self.forgive()
                except Exception as error:  # whatever came, it was no answer
                    self.last_error = str(error) if isinstance(error, FuserecError) else repr(error)
                    self.misses += 1
                else:
                    self.forgive()
