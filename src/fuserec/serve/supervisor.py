"""Keep a server at work: bring back what died or hangs, and follow what the repository says is to be served.

What is served keeps being served until something better has answered. So one loop looks after the served version and
never waits: twice a second it counts processes and reads their signs of life, while another thread asks questions
(`fuserec.serve.canary`). Opening another version (`fuserec.serve.following`) and opening a model anew happen in
threads, too, and whatever goes wrong with another version is said, counted and leaves the served one alone.

The server itself is not asked: it answers "ready" with a model process dead (2.51: its calls fail after a second).
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

from fuserec.errors import BundleError, FuserecError, LaunchError
from fuserec.serve.canary import Canary
from fuserec.serve.following import Follower
from fuserec.serve.launcher import NoRoomError, Server, StartError
from fuserec.serve.processes import model_processes, open_files
from fuserec.serve.state import Status
from fuserec.serve.vitals import Vitals

logger = logging.getLogger(__name__)

# So few descriptors below its limit a server takes no more connections.
_SPARE_FILES = 16
# Starts of one version in a row that may fail before an older good one is tried.
_STARTS_OF_ONE = 2


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
        load_s: For another version to be opened; then it is given up.
        repair_s: For a model to be opened anew; then the server is started again.
    """

    tick_s: float = 0.5
    canary_s: float = 1.0
    canary_timeout_s: float = 1.5
    canary_failures: int = 3
    first_backoff_s: float = 0.5
    longest_backoff_s: float = 30.0
    forgive_s: float = 60.0
    most_restarts: int = 10
    leave_s: float = 10.0
    load_s: float = 120.0
    repair_s: float = 60.0


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


def start_with_good(server: Server, say: Callable[[str], object]) -> None:
    """Start a server: with the wanted version if it has answered before, else with the last good one.

    The supervisor turns to the wanted one later, so that nobody waits for a version that may never answer. Where
    nothing was ever good, the wanted one is started, and older ones where it does not answer.

    Raises:
        BundleError: No version that could be served is whole.
        LaunchError: None of them can be started.
    """
    problem: LaunchError | None = None
    for version in server.versions.in_order(server.versions.first(cautiously=True)):
        try:
            server.start(version)
        except StartError as error:
            say(f"version {version} cannot be started with: {error}")
            problem = problem or error
        else:
            return
    assert problem is not None, "there is a first version, or `first` has raised"
    raise problem


class _Repair:
    """Models being opened anew, in a thread of its own."""

    def __init__(self, server: Server, models: list[str]) -> None:
        self.models = models
        self.began = time.monotonic()
        self.error: Exception | None = None
        self._server = server
        self._thread = threading.Thread(target=self._run, name="fuserec-repair", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._server.reload(*self.models)
        except Exception as error:
            self.error = error


class Supervisor:
    """Watches one started server.

    Args:
        server: It is running; whoever started it also stops it.
        watch: How closely.
        on_event: Called with a line about each thing that happened.
        on_status: Called with what is served and what became of other versions, whenever that changes.
    """

    def __init__(
        self,
        server: Server,
        watch: Watch | None = None,
        on_event: Callable[[str], object] = logger.warning,
        on_status: Callable[[Status], object] = lambda status: None,
    ) -> None:
        self._server = server
        self._watch = watch or Watch()
        self._on_event = on_event
        self._backoff = Backoff(self._watch)
        self._complaint = ""
        self._repair: _Repair | None = None
        self._canary: Canary | None = None
        self._vitals = Vitals()
        self._executions = 0
        self._lacked: list[str] = []
        self._next_repair = 0.0
        self._failed_starts: Counter[int] = Counter()
        self._follower = Follower(server, self._watch.load_s, self._say, on_status)

    def run(self, stop: threading.Event | None = None) -> None:
        """Watch until `stop` is set.

        Raises:
            LaunchError: The server dies again and again; the end of its log is in the message.
        """
        stop = stop or threading.Event()
        self._begin_watching()
        try:
            self._follower.started()
            while not stop.wait(self._watch.tick_s):
                self._tick(stop)
        finally:
            self._end_watching()

    def _tick(self, stop: threading.Event) -> None:
        if not self._server.is_running:
            self._restart(self._server.epitaph(), stop)
            return
        try:
            fault = self._look() or self._judge_canary()
        except (LaunchError, OSError):  # it has died at this very moment
            return
        if fault is not None:
            self._restart(fault, stop, kill=True)
            return
        try:
            if (why := self._mend()) is not None:
                self._restart(why, stop, kill=True)
                return
        except (LaunchError, OSError):
            return
        try:
            self._server.end_leaving(self._watch.leave_s)
            if self._repair is None:
                self._follower.follow()
        except Exception as error:  # of another version, or of what the repository says: the served one goes on
            if not isinstance(error, FuserecError | OSError):
                logger.exception("the repository cannot be followed")
            self._complain(f"what the repository says cannot be followed: {type(error).__name__}: {error!s:.300}")
        if self._follower.to_start is not None:
            self._restart(f"the server cannot open version {self._follower.to_start} while it runs", stop)

    def _look(self) -> str | None:
        """Kill the processes that hang; return why the server itself has to go, None where it need not."""
        pid = self._server.pid
        serving = self._server.serving()
        faults = self._vitals.look(self._server.vitals, [pid, *serving])
        if pid in faults:
            return f"the server {faults.pop(pid)}"
        for hung, how in faults.items():
            self._say(f"process {hung} of a model {how}; it is killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(hung, signal.SIGKILL)
        return None

    def _judge_canary(self) -> str | None:
        """Return why the server counts as dead, None while it does not."""
        canary = self._canary
        if canary is None:
            return None
        done = self._vitals.executions()
        if self._repair is not None or self._server.lacking():
            canary.forgive()  # a question may have met the process that died
        if canary.misses == 0:
            self._executions = done
            return None
        if canary.misses < self._watch.canary_failures:
            return None
        if done > self._executions:  # others are answered
            self._complain(f"the server is too busy for a question of its supervisor: {canary.last_error}")
            self._executions = done
            canary.forgive()
            return None
        if (files := open_files(self._server.pid)) >= self._server.max_files - _SPARE_FILES:
            self._complain(
                f"the server takes no more connections: {files:,} files are open of {self._server.max_files:,} "
                "(ulimit -n); it answers on those that it has"
            )
            canary.forgive()
            return None
        return f"no answer to {canary.misses} questions in a row: {canary.last_error}"

    def _mend(self) -> str | None:
        """Have models that lack a process opened anew; return why the server has to be started again instead."""
        if self._repair is not None:
            return self._settle_repair(self._repair)
        lacking = self._server.lacking()
        # At the moment that a model turns to another version its processes are others than those expected.
        before, self._lacked = self._lacked, lacking
        if not lacking or time.monotonic() < self._next_repair:
            return None
        if self._follower.is_opening and before != lacking:
            return None
        if self._follower.is_opening:
            # Opening another version ends with what it opened taken back, and with this mended.
            self._follower.yield_to_repair(lacking)
            return None
        for model in lacking:
            self._say(f"a process of {model!r} has died; opening the model again")
        self._repair = _Repair(self._server, lacking)
        return None

    def _settle_repair(self, repair: _Repair) -> str | None:
        took_s = time.monotonic() - repair.began
        if not repair.is_over:
            return f"{repair.models} was not opened anew in {took_s:.0f} s" if took_s > self._watch.repair_s else None
        self._repair = None
        lacking = self._server.lacking()
        if repair.error is not None:
            if not self._is_worth_a_restart(repair.error, lacking):
                self._complain(f"a process less serves {', '.join(map(repr, lacking))}: {repair.error}")
                self._next_repair = time.monotonic() + self._watch.longest_backoff_s / 6.0
                return None
            return str(repair.error)
        for model in repair.models:
            if model in lacking:
                return f"{model!r} was opened anew and still lacks a process"
            self._say(f"{model!r} is whole again after {took_s:.1f} s")
        return None

    def _is_worth_a_restart(self, error: Exception, lacking: list[str]) -> bool:
        """Return whether a new start may do better: not where each model still answers and the disk is at fault."""
        there = model_processes(self._server.pid)
        if not all(there[model] for model in lacking):
            return True
        if isinstance(error, NoRoomError):
            return False
        try:
            self._server.versions.verified(self._server.manifest.version)
        except (BundleError, OSError):
            return False
        return True

    def _restart(self, why: str, stop: threading.Event, *, kill: bool = False) -> None:
        last_good = self._follower.served
        if self._follower.to_start is not None and self._failed_starts[self._follower.to_start] < _STARTS_OF_ONE:
            last_good = self._follower.to_start
        self._end_watching()
        self._server.stop(kill=kill)  # what hangs keeps its callers waiting
        while (wait_s := self._backoff.next_s()) is not None:
            self._say(f"{why}; starting it again" + (f" in {wait_s:.1f} s" if wait_s else ""))
            if stop.wait(wait_s):
                return
            began = time.monotonic()
            version = self._to_start(last_good)
            try:
                if not self._start_when_whole(version, stop):
                    return
            except LaunchError as error:
                self._failed_starts[version] += isinstance(error, StartError)
                why = str(error)
                continue
            self._failed_starts.clear()
            self._begin_watching()
            self._say(f"the server answers again after {time.monotonic() - began:.1f} s")
            self._follower.started()
            return
        raise LaunchError(f"{why}\nit died {self._watch.most_restarts} times in a row; not started again")

    def _to_start(self, last_good: int) -> int:
        """Return the version that a restart serves: the one that was, then those before it if it does not start."""
        with contextlib.suppress(BundleError, OSError):  # the repository itself is gone, for now
            for version in self._server.versions.in_order(last_good):
                if self._failed_starts[version] < _STARTS_OF_ONE:
                    return version
        self._failed_starts.clear()
        return last_good

    def _start_when_whole(self, version: int, stop: threading.Event) -> bool:
        """Start the server; wait for a damaged repository, for it cannot mend itself and costs no start.

        Returns:
            Whether it was started; False where `stop` was set before.

        Raises:
            LaunchError: It cannot be started from a whole one.
        """
        wait_s = self._watch.first_backoff_s
        while True:
            try:
                self._server.start(version)
            except (BundleError, OSError) as error:
                self._complain(f"nothing is served until the repository is mended: {error}")
            else:
                self._complaint = ""
                return True
            if stop.wait(wait_s):
                return False
            wait_s = min(2.0 * wait_s, self._watch.longest_backoff_s)
            with contextlib.suppress(BundleError):  # another one may be wanted by now, and be whole
                version = self._server.versions.verified(self._server.versions.wanted()).version

    def _begin_watching(self) -> None:
        self._vitals = Vitals()
        self._executions = 0
        self._canary = Canary(self._server, self._watch.canary_s, self._watch.canary_timeout_s).start()

    def _end_watching(self) -> None:
        if self._canary is not None:
            self._canary.stop()
        self._canary = self._repair = None
        self._follower.give_up()

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._say(what)
        self._complaint = what

    def _say(self, what: str) -> None:
        """Tell whoever listens; that nobody can (a terminal that was closed, a full disk) is no reason to end."""
        try:
            self._on_event(what)
        except Exception as error:
            logger.debug("an event cannot be told (%s): %s", error, what)
