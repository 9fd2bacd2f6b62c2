"""Follow what a repository says is to be served: one candidate at a time, each judged by whether it has answered.

served     answers; changed by nothing but a candidate that has answered
candidate  is verified, opened and asked, in a thread (`fuserec.serve.candidate`)
refused    failed one of that; looked at again when a file of it changes, or when it is asked for again
last good  what the journal says was served before (`fuserec.journal`)
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from fuserec import journal
from fuserec.errors import BundleError, FuserecError
from fuserec.serve.candidate import Attempt
from fuserec.serve.heartbeat import told
from fuserec.serve.launcher import NoRoomError, Server
from fuserec.serve.processes import process_ids
from fuserec.serve.state import Refused, Status
from fuserec.traffic import Traffic

logger = logging.getLogger(__name__)

# A refused version that changes is left alone until it has not changed for so long: it is being copied.
_SETTLE_S = 1.0
# After what was the machine's fault.
_AGAIN_S = 10.0


@dataclass(frozen=True)
class _Refusal:
    """Why a version is not served, and what it was then."""

    reason: str
    fingerprint: Hashable
    asked: str
    again_at: float
    at_s: float


class Follower:
    """Turns a server to the version that its repository wants.

    Args:
        server: It is running.
        load_s: For a candidate to be opened.
        say: Called with a line about each thing that happened.
        on_status: Called with what is served and what became of other versions, whenever that changes.
    """

    def __init__(
        self, server: Server, load_s: float, say: Callable[[str], None], on_status: Callable[[Status], object]
    ) -> None:
        self._server, self._load_s, self._say, self._on_status = server, load_s, say, on_status
        self._attempt: Attempt | None = None
        self._refused: dict[int, _Refusal] = {}
        # What a refused version was at the last look, and since when.
        self._changing: tuple[int, Hashable, float] | None = None
        self._complaint = ""
        self._journal_works = True
        self._refusals = 0
        self._status: Status | None = None
        self.served = server.manifest.version
        # A whole version that a server which cannot be steered has to be started with.
        self.to_start: int | None = None

    def started(self) -> None:
        """Note what a server that has just been started serves."""
        if self._server.complaint:
            self._say(self._server.complaint)
        version = self._server.manifest.version
        if self.to_start not in (None, version):
            reason = "the server does not start with it"
            self._refused[self.to_start] = _Refusal(
                reason,
                self._server.versions.fingerprint(self.to_start),
                self._asked_at(self.to_start),
                float("inf"),
                time.monotonic(),
            )
            self._record(journal.REFUSED, self.to_start, reason)
        self.to_start = None
        line = journal.served_line(journal.events(self._server.repository))
        if line[-1:] != [version]:
            self._record(journal.SERVED, version, journal.FALLBACK if version in line else journal.START)
        self.served = version
        self._tell()

    @property
    def is_opening(self) -> bool:
        """Whether the server is opening another version at this moment."""
        return self._attempt is not None and not self._attempt.is_over and self._attempt.opening_s > 0.0

    def yield_to_repair(self, lacking: Sequence[str]) -> None:
        """Call the candidate off, for now: the served version lacks a process."""
        assert self._attempt is not None, "something is being opened"
        if not self._attempt.is_cancelled:
            self._say(f"version {self._attempt.version} waits: a process of {', '.join(map(repr, lacking))} has died")
        self._attempt.cancel()

    def give_up(self) -> None:
        """Call off what is tried: the server is gone, or about to be."""
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt.wait(2.0)
            self._attempt = None

    def follow(self) -> None:
        """Do the next step towards what the repository says."""
        try:
            wanted = self._server.versions.wanted()
        except (BundleError, OSError) as error:
            self._complain(f"version {self.served} goes on: {error}")
            wanted = None
        else:
            if self._complaint and wanted not in self._refused:
                self._complaint = ""
        if self._attempt is not None:
            self._watch_attempt(self._attempt, wanted)
        elif wanted is not None and wanted != self.served and self._is_worth_trying(wanted):
            self._attempt = Attempt(self._server, wanted)
        elif wanted == self.served:
            self._refused.pop(wanted, None)
        self._tell()

    def _watch_attempt(self, attempt: Attempt, wanted: int | None) -> None:
        if not attempt.is_over:
            if wanted is not None and wanted != attempt.version:
                attempt.cancel()
            elif attempt.opening_s > self._load_s:
                attempt.cancel(f"it was not open after {self._load_s:.0f} s")
            elif attempt.is_cancelled:
                attempt.cancel()
            return
        self._attempt = None
        if attempt.error is None and not self._server.can_be_steered:
            self.to_start = attempt.version
        elif attempt.error is None:
            self.served = attempt.version
            self._refused.pop(attempt.version, None)
            self._complaint = ""
            self._record(journal.SERVED, attempt.version, self._asked_why(attempt.version))
            self._say(f"version {attempt.version} is served, after {time.monotonic() - attempt.began:.1f} s")
        elif (blame := attempt.blame) is not None:
            self._refuse(attempt, blame)

    def _refuse(self, attempt: Attempt, blame: str) -> None:
        version = attempt.version
        self._refusals += 1
        again_at = time.monotonic() + _AGAIN_S if isinstance(attempt.error, NoRoomError) else float("inf")
        before = self._refused.get(version)
        fingerprint = self._server.versions.fingerprint(version)
        self._refused[version] = _Refusal(blame, fingerprint, self._asked_at(version), again_at, time.monotonic())
        # A copy that grows is refused again and again: said once, until something else is wrong with it.
        if before is None or _outline(before.reason) != _outline(blame):
            self._record(journal.REFUSED, version, blame)
            self._complain(f"version {self.served} goes on: {_named(version, blame)}")

    def _is_worth_trying(self, version: int) -> bool:
        refusal = self._refused.get(version)
        if refusal is None:
            return True
        if time.monotonic() >= refusal.again_at or self._asked_at(version) != refusal.asked:
            return True
        fingerprint = self._server.versions.fingerprint(version)
        if fingerprint == refusal.fingerprint:
            return False
        if self._changing is None or self._changing[:2] != (version, fingerprint):
            self._changing = version, fingerprint, time.monotonic()
            return False
        return time.monotonic() - self._changing[2] >= _SETTLE_S

    def _asked_at(self, version: int) -> str:
        asked = [event for event in self._events() if event.kind == journal.ASKED and event.version == version]
        return asked[-1].time if asked else ""

    def _asked_why(self, version: int) -> str:
        asked = [event for event in self._events() if event.kind == journal.ASKED and event.version == version]
        return asked[-1].why if asked else journal.SERVE

    def _events(self) -> list[journal.Event]:
        return journal.events(self._server.repository)

    def _record(self, kind: str, version: int, why: str) -> None:
        address = self._server.address
        try:
            journal.record(self._server.repository, kind, version, why, f"{address.host}:{address.grpc_port}")
        except OSError as error:
            if self._journal_works:
                logger.info("the journal of %s cannot be written: %s", self._server.repository, error.strerror)
            self._journal_works = False

    def _tell(self) -> None:
        attempt = self._attempt
        status = Status(
            served=self.served,
            candidate=None if attempt is None else attempt.version,
            doing=None if attempt is None else attempt.state,
            refused={str(version): Refused(each.reason, each.at_s) for version, each in self._refused.items()},
            experiment=self._experiment(),
            refusals=self._refusals,
        )
        if status != self._status:
            self._status = status
            try:
                self._on_status(status)
            except Exception:
                logger.exception("what is served cannot be told")

    def _experiment(self) -> dict[str, object] | None:
        """Return what the processes of the front door say of the experiment; None where there is none."""
        try:
            experiment = Traffic.read(self._server.repository).experiment
        except FuserecError:
            return None
        if experiment is None:
            return None
        manifest = self._server.manifest
        pids = process_ids(self._server.pid, manifest.models[0], manifest.version)
        words = [told(self._server.vitals, pid) or {} for pid in pids]
        asked = dataclasses.asdict(experiment)
        mine = [word for word in words if asked.items() <= word.items()]
        if bad := next((word for word in mine if word.get("state") in ("refused", "failed")), None):
            return bad
        if any(word.get("state") == "opening" for word in mine):
            return asked | {"state": "opening", "reason": ""}
        return asked | {"state": "running" if mine and len(mine) == len(pids) else "waiting", "reason": ""}

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._say(what)
        self._complaint = what


def _named(version: int, blame: str) -> str:
    return blame if f"version {version}" in blame else f"version {version}: {blame}"


def _outline(reason: str) -> str:
    """Return a reason without its numbers, which change while a file is copied."""
    return "".join(char for char in reason.partition("\n")[0] if not char.isdigit())
