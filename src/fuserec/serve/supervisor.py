"""Keep a server at work: bring back what died, and follow what the repository says is to be served.

The server answers "ready" with a model process dead (2.51: its calls fail after a second), so it is not asked. Twice
a second the supervisor counts processes, and every few seconds it asks a question itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fuserec.errors import BundleError, LaunchError
from fuserec.serve.launcher import Server
from fuserec.serve.processes import children_of, model_processes, process_ids
from fuserec.traffic import served_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """How closely a server is watched, in seconds.

    Attributes:
        tick_s: Between two looks at the processes and at `traffic.json`.
        canary_s: Between two questions.
        canary_timeout_s: For the answer to one.
        canary_failures: Questions in a row without an answer after which the server is started anew.
        first_backoff_s: Before the second start in a row; doubled from one to the next.
        longest_backoff_s: It grows no further.
        forgive_s: After so long without a fault, the next one is the first again.
        most_restarts: In a row; with one more the supervisor gives up.
        leave_s: For the processes of a model that was opened anew to finish what they have begun.
    """

    tick_s: float = 0.5
    canary_s: float = 5.0
    canary_timeout_s: float = 2.0
    canary_failures: int = 3
    first_backoff_s: float = 0.5
    longest_backoff_s: float = 30.0
    forgive_s: float = 60.0
    most_restarts: int = 10
    leave_s: float = 10.0


class Backoff:
    """How long to wait before the next start."""

    def __init__(self, watch: Watch, clock: Callable[[], float] = time.monotonic) -> None:
        self._watch = watch
        self._clock = clock
        self._in_a_row = 0
        self._last = -float("inf")

    def next_s(self) -> float | None:
        """Return the seconds to wait before a start; None where it is time to give up."""
        now = self._clock()
        if now - self._last > self._watch.forgive_s:
            self._in_a_row = 0
        self._last = now
        self._in_a_row += 1
        if self._in_a_row > self._watch.most_restarts:
            return None
        if self._in_a_row == 1:
            return 0.0
        grown: float = self._watch.first_backoff_s * 2.0 ** (self._in_a_row - 2)
        return min(grown, self._watch.longest_backoff_s)


class Supervisor:
    """Watches one started server.

    Args:
        server: It is running; whoever started it also stops it.
        watch: How closely.
        on_event: Called with a line about each thing that happened.
    """

    def __init__(
        self, server: Server, watch: Watch | None = None, on_event: Callable[[str], None] = logger.warning
    ) -> None:
        self._server = server
        self._watch = watch or Watch()
        self._say = on_event
        self._backoff = Backoff(self._watch)
        self._misses = 0
        self._refused = self._complaint = ""
        # Process ids, and when they are to be gone.
        self._leaving: dict[int, float] = {}

    def run(self, stop: threading.Event | None = None) -> None:
        """Watch until `stop` is set.

        Raises:
            LaunchError: The server dies again and again; the end of its log is in the message.
        """
        stop = stop or threading.Event()
        next_canary = time.monotonic() + self._watch.canary_s
        while not stop.wait(self._watch.tick_s):
            if not self._server.is_running:
                self._restart(self._server.epitaph(), stop)
            elif lacking := self._expected() - self._present():
                self._reload(next(iter(lacking)), stop)
            elif time.monotonic() >= next_canary:
                self._ask(stop)
                next_canary = time.monotonic() + self._watch.canary_s
            else:
                self._end_leaving()
                self._follow()

    def _restart(self, why: str, stop: threading.Event) -> None:
        while (wait_s := self._backoff.next_s()) is not None:
            self._say(f"{why}; starting it again" + (f" in {wait_s:.1f} s" if wait_s else ""))
            if stop.wait(wait_s):
                return
            began = time.monotonic()
            self._server.stop()
            try:
                if not self._start_when_whole(stop):
                    return
            except LaunchError as error:
                why = str(error)
                continue
            self._misses = 0
            self._leaving.clear()
            self._say(f"the server answers again after {time.monotonic() - began:.1f} s")
            return
        raise LaunchError(f"{why}\nit died {self._watch.most_restarts} times in a row; not started again")

    def _start_when_whole(self, stop: threading.Event) -> bool:
        """Start the server; wait for a damaged repository, for it cannot mend itself and costs no start.

        Returns:
            Whether it was started; False where `stop` was set before.

        Raises:
            LaunchError: It cannot be started from a whole one.
        """
        wait_s = self._watch.first_backoff_s
        while True:
            try:
                self._server.start()
            except BundleError as error:
                self._complain(f"nothing is served until the repository is mended: {error}")
            else:
                self._complaint = ""
                return True
            if stop.wait(wait_s):
                return False
            wait_s = min(2.0 * wait_s, self._watch.longest_backoff_s)

    def _reload(self, model: str, stop: threading.Event) -> None:
        self._say(f"a process of {model!r} has died; opening the model again")
        began = time.monotonic()
        before = process_ids(self._server.pid, model)
        try:
            self._server.reload(model)
        except LaunchError as error:
            self._restart(str(error), stop)
            return
        self._leaving |= dict.fromkeys(before, time.monotonic() + self._watch.leave_s)
        if self._expected()[model] > self._present()[model]:
            self._restart(f"{model!r} was opened anew and still lacks a process", stop)
            return
        self._say(f"{model!r} is whole again after {time.monotonic() - began:.1f} s")

    def _ask(self, stop: threading.Event) -> None:
        try:
            self._server.canary(1e3 * self._watch.canary_timeout_s)
        except LaunchError as error:
            self._misses += 1
            logger.warning("no answer to the canary, %d in a row: %s", self._misses, error)
            if self._misses >= self._watch.canary_failures:
                self._restart(str(error), stop)
        else:
            self._misses = 0

    def _follow(self) -> None:
        """Serve what the repository says; what cannot be served is named once and left until something else is said."""
        try:
            bundle = served_folder(self._server.repository)
            if bundle.name in (str(self._server.manifest.version), self._refused):
                return
            began = time.monotonic()
            self._refused = bundle.name
            self._server.swap(bundle)
        except (BundleError, LaunchError) as error:
            self._complain(f"version {self._server.manifest.version} goes on: {error}")
            return
        self._refused = self._complaint = ""
        self._say(f"version {bundle.name} is served, after {time.monotonic() - began:.1f} s")

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._say(what)
        self._complaint = what

    def _present(self) -> Counter[str]:
        """Return how many processes each model has, without those of a model that has been opened anew since."""
        return model_processes(self._server.pid, but=self._leaving)

    def _end_leaving(self) -> None:
        """End what should have left.

        Server 2.51 waits for ever for what the process that died had begun, and so never ends its siblings.
        """
        for pid in [pid for pid, until in self._leaving.items() if time.monotonic() > until]:
            del self._leaving[pid]
            if pid in children_of(self._server.pid):
                logger.warning("process %d of a model that was opened anew is ended", pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _expected(self) -> Counter[str]:
        """Return how many processes each model should have."""
        models = self._server.manifest.models
        return Counter({model: self._server.settings.instances_of(model, models[0]) for model in models})
