"""The word of the servers: what they serve, and whether they have taken what was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuserec import journal
from fuserec.client import ModelNotFound, Recommender
from fuserec.errors import BundleError, ClientError, LaunchError
from fuserec.manifest import bundles
from fuserec.serve.state import Note, note_of, notes
from fuserec.traffic import SHADOW, Experiment, Traffic

_NOBODY = "no server of this machine serves this folder; what others have made of it shows in their logs"
# Of the journal that is shown.
_LAST_EVENTS = 10


@dataclass(frozen=True)
class Word:
    """What the servers said, for people, and how long they took; None where there is none to ask."""

    text: str
    took_s: float | None


def servers_of(target: str, repository: Path) -> list[Note]:
    """Return the running servers that a target means: the one at an address, or all of this machine over a folder."""
    if not Path(target).is_dir():
        note = note_of(target)
        return [note] if note is not None else []
    return [note for note in notes() if _same(note.repository, repository)]


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def wait_for_version(target: str, repository: Path, version: int, since_s: float, wait_s: float) -> Word:
    """Wait until each server answers from a version, or has refused it.

    Args:
        target: Address of a server, or a repository.
        repository: What it serves.
        version: That was asked for.
        since_s: Monotonic time before that was done: what was refused earlier is no word about it.
        wait_s: Longest time to wait.

    Raises:
        LaunchError: One has refused it, or does neither in time; the repository says so all the same.
    """

    def has_taken(note: Note) -> bool:
        status = note.status
        if status is not None and (refused := status.refused.get(str(version))) and refused.at_s >= since_s:
            _write_down(repository, journal.REFUSED, version, refused.reason, note)
            raise LaunchError(
                f"{_name(note)} does not take version {version} and goes on with {status.served}: "
                f"{_first_line(refused.reason)}; the log of the server says more"
            )
        if status is not None and status.served != version:
            return False
        if _answering(note) != str(version):
            return False
        _write_down(repository, journal.SERVED, version, _why(repository, version), note)
        return True

    took_s = _wait(target, repository, has_taken, f"answer from version {version}", wait_s)
    return Word(_NOBODY, None) if took_s is None else Word(f"answers from it, after {took_s:.1f} s", took_s)


def wait_for_experiment(target: str, repository: Path, version: int, wait_s: float) -> Word:
    """Wait until each server tries a version beside the served one, or has refused to; see `wait_for_version`.

    Raises:
        LaunchError: One has refused it, or does neither in time; the repository says so all the same.
    """
    asked = Traffic.read(repository).experiment or Experiment(SHADOW, version, 1.0)

    def tries(note: Note) -> bool:
        said = note.status.experiment if note.status is not None else None
        if said is None or not dataclasses.asdict(asked).items() <= said.items():
            return False
        if said["state"] in ("refused", "failed"):
            raise LaunchError(
                f"{_name(note)} does not try version {version}, nobody gets it: {_first_line(str(said['reason']))}"
            )
        return said["state"] == "running"

    took_s = _wait(target, repository, tries, f"try version {version}", wait_s)
    return Word(_NOBODY, None) if took_s is None else Word(f"tries it, after {took_s:.1f} s", took_s)


def _wait(target: str, repository: Path, is_done: Callable[[Note], bool], what: str, wait_s: float) -> float | None:
    """Wait for all servers; return the seconds, None where there is no server."""
    began = time.monotonic()
    waiting = {_name(note): note for note in servers_of(target, repository)}
    if not waiting:
        return None
    while waiting:
        for note in servers_of(target, repository):
            if _name(note) in waiting and is_done(note):
                del waiting[_name(note)]
        if waiting:
            if time.monotonic() - began > wait_s:
                raise LaunchError(
                    f"{', '.join(waiting)} does not {what} after {wait_s:.0f} s; the output of `fuserec serve` says why"
                )
            time.sleep(0.1)
    return time.monotonic() - began


def _answering(note: Note) -> str | None:
    """Return the version that a server answers from; None where it does not answer."""
    url = f"{note.host}:{note.ports['grpc']}"
    with contextlib.suppress(ClientError), Recommender(url, timeout_ms=2_000.0) as client:
        try:
            return client.recommend(user_id=None, k=1).model_version
        except ModelNotFound:  # a ranker without a retriever
            return client.rank(candidates=[0]).model_version
    return None


def _write_down(repository: Path, kind: str, version: int, why: str, note: Note) -> None:
    """Put into the journal what a server said that cannot write there itself."""
    words = [event for event in journal.events(repository) if event.kind in (journal.SERVED, journal.REFUSED)]
    if words and (words[-1].kind, words[-1].version) == (kind, version):
        return
    with contextlib.suppress(OSError):
        journal.record(repository, kind, version, why, _name(note))


def _why(repository: Path, version: int) -> str:
    asked = [event for event in journal.events(repository) if event.kind == journal.ASKED and event.version == version]
    return asked[-1].why if asked else journal.SERVE


def _first_line(reason: str) -> str:
    """Return the first line of a reason, which may end in a part of the server's log."""
    return reason.partition("\n")[0]


def _name(note: Note) -> str:
    return f"{note.host}:{note.ports['grpc']}"


@dataclass(frozen=True)
class Standing:
    """What is asked of a repository and what its servers do.

    Attributes:
        served: What its servers answer from; None where they differ, or none is known and the journal is silent.
        wanted: What is to be served; None where that cannot be read.
        is_pinned: Whether that is said, and not just the newest.
        problem: Why `wanted` cannot be read.
        experiment: What is to be tried beside it.
        state: How that is; empty where no server says.
        servers: Each known server to the version that it answers from.
        refused: Versions that a server refuses, and why.
        refusals: How often one was refused since the servers began.
        versions: What is there.
        history: The last events of the journal.
        shadowed: What a shadow has done so far.
    """

    served: int | None
    wanted: int | None
    is_pinned: bool
    problem: str
    experiment: Experiment | None
    state: dict[str, Any]
    servers: dict[str, int]
    refused: dict[str, str]
    refusals: int
    versions: list[int]
    history: list[journal.Event]
    shadowed: dict[str, float] | None

    @classmethod
    def of(cls, target: str, repository: Path) -> Standing:
        """Look at a repository and the notes of its servers."""
        found = servers_of(target, repository)
        told = {_name(note): note.status for note in found if note.status is not None}
        wanted, problem, traffic = None, "", Traffic()
        try:
            traffic = Traffic.read(repository)
            wanted = int(traffic.bundle(repository).name)
        except BundleError as error:
            problem = str(error)
        history = journal.events(repository)
        servers = {name: status.served for name, status in told.items()}
        if servers:
            different = set(servers.values())
            served = different.pop() if len(different) == 1 else None
        elif found:  # it has not said yet
            answers = _answering(found[0])
            served = int(answers) if answers is not None else wanted
        else:
            line = journal.served_line(history)
            served = line[-1] if line else None
        states = [status.experiment for status in told.values() if status.experiment is not None]
        bad = next((state for state in states if state["state"] != "running"), None)
        refused = {version: why.reason for status in told.values() for version, why in status.refused.items()}
        shadowed = None
        if traffic.experiment is not None and traffic.experiment.kind == SHADOW and found and served is not None:
            shadowed = _shadowed(found[0], served, traffic.experiment.version)
        return cls(
            served,
            wanted,
            traffic.serve is not None,
            problem,
            traffic.experiment,
            dict(bad or (states[0] if states else {})),
            servers,
            refused,
            sum(status.refusals for status in told.values()),
            list(bundles(repository)),
            history[-_LAST_EVENTS:],
            shadowed,
        )

    def document(self) -> dict[str, Any]:
        """Return it for programs."""
        experiment: dict[str, Any] | None = None
        if self.experiment is not None:
            experiment = dataclasses.asdict(self.experiment)
            if self.state:
                experiment |= {"state": self.state["state"], "reason": self.state.get("reason") or None}
            experiment |= self.shadowed or {}
        return {
            "served": self.served,
            "wanted": self.wanted,
            "pinned": self.is_pinned,
            "problem": self.problem or None,
            "experiment": experiment,
            "servers": self.servers,
            "refused": self.refused,
            "refusals": self.refusals,
            "versions": self.versions,
            "history": [dataclasses.asdict(event) for event in self.history],
        }

    def facts(self) -> dict[str, str]:
        """Return it for people."""
        if len(set(self.servers.values())) > 1:
            served = ", ".join(f"version {version} by {name}" for name, version in self.servers.items())
        elif self.served is None:
            served = "by no server that is known here"
        else:
            served = f"version {self.served}" + ("" if self.servers else ", by what was last said of it")
        if self.served == self.wanted:
            served += ", pinned" if self.is_pinned else ", the newest"
        facts = {"served": served}
        if self.problem:
            facts["wanted"] = self.problem
        elif self.served != self.wanted:
            why = self.refused.get(str(self.wanted))
            facts["wanted"] = f"version {self.wanted}" + (
                f", which is refused: {_first_line(why)}" if why else ", not served yet"
            )
        if self.experiment is not None:
            tried = self.experiment
            to_be = f"version {tried.version} for {tried.share:.0%} of the users"
            state = self.state.get("state")
            if state in ("refused", "failed"):
                why = _first_line(str(self.state.get("reason")))
                to_be = f"version {tried.version} was to be tried, nobody gets it: {why}"
            elif state in ("opening", "waiting"):
                to_be += ", once it is open"
            elif state is None and not self.servers:
                to_be += ", where a server runs"
            facts[tried.kind] = to_be
        if self.shadowed is not None:
            so_far = "{rows:,.0f} rows, {overlap:.1%} of the items in common, {ms_per_row:.2f} ms a row"
            facts["so far"] = so_far.format(**self.shadowed)
        facts["there are"] = ", ".join(map(str, self.versions))
        for event in self.history[-3:]:
            facts[event.time[:19]] = f"version {event.version} {event.kind} by {event.by}: {_first_line(event.why):.80}"
        return facts


def _shadowed(note: Note, served: int, candidate: int) -> dict[str, float] | None:
    """Return what a shadow has done since the server began: rows, items in common, milliseconds a row."""
    from fuserec.top import Scrape, shadow_so_far

    try:
        seen = shadow_so_far(Scrape.fetch(f"http://{note.host}:{note.ports['metrics']}"), served, candidate)
    except LaunchError:  # it is down; what the repository says holds all the same
        return None
    return None if seen is None else dataclasses.asdict(seen)
