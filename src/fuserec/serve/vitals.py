"""Which processes of a server hang: judged by their signs of life and by what Linux says of them.

A process that works hard is not one that hangs. So a sign that stays away counts only while the process uses no
processor and does not wait for a disk; one that uses it is given much longer. Time counts in looks, and a look counts
for no more than two ticks: after the machine or the launcher itself stood still, nobody is judged by the gap.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.serve.heartbeat import Signs

# Of one core; the threads that beat and that hand over metrics use a tenth of this.
_BUSY_SHARE: Final = 0.05
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Patience:
    """Seconds without a sign after which a process hangs.

    Attributes:
        silent_s: Of one that beats no more and uses no processor: it is stopped, or locked up.
        idle_s: Of one inside an execution that uses no processor, though it beats.
        stuck_s: Of one that uses it all the time.
        longest_look_s: For which one look may count.
    """

    silent_s: float = 2.0
    idle_s: float = 5.0
    stuck_s: float = 60.0
    longest_look_s: float = 1.0


@dataclass(frozen=True)
class Stat:
    """State (`R`, `S`, `D`, `T`, ...) of a process, and the seconds of processor time that it has used."""

    state: str
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Stat | None:
        """Return what Linux says of a process; None where it is gone."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return cls(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S)


def _is_at_work(pid: int) -> bool:
    """Return whether a thread of a process runs, waits for its turn on a processor, or for a disk."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                return True
    return False


@dataclass
class _Record:
    """What was seen of one process, and for how long it has been so."""

    stat: Stat
    signs: Signs | None
    silent_s: float = 0.0
    idle_s: float = 0.0
    without_beat_s: float = 0.0
    in_execution_s: float = 0.0
    stopped_s: float = 0.0

    def add(self, pid: int, stat: Stat, signs: Signs | None, passed_s: float) -> None:
        self.stopped_s = self.stopped_s + passed_s if stat.state in "Tt" else 0.0
        if signs is not None and self.signs is not None:
            beats_not = signs.beats == self.signs.beats
            same_call = signs.busy_since_ns != 0 and signs.busy_since_ns == self.signs.busy_since_ns
            waits = False
            if beats_not or same_call:
                waits = stat.cpu_s - self.stat.cpu_s < _BUSY_SHARE * passed_s and not _is_at_work(pid)
            self.without_beat_s = self.without_beat_s + passed_s if beats_not else 0.0
            self.silent_s = self.silent_s + passed_s if beats_not and waits else 0.0
            self.in_execution_s = self.in_execution_s + passed_s if same_call else 0.0
            self.idle_s = self.idle_s + passed_s if same_call and waits else 0.0
        self.stat, self.signs = stat, signs

    def fault(self, patience: Patience) -> str | None:
        if max(self.stopped_s, self.silent_s) >= patience.silent_s:
            how = "is stopped" if self.stopped_s >= patience.silent_s else "shows no sign of life"
            return f"{how} since {max(self.stopped_s, self.silent_s):.1f} s"
        if self.idle_s >= patience.idle_s:
            return f"waits within a call since {self.idle_s:.1f} s"
        if (stuck_s := max(self.without_beat_s, self.in_execution_s)) >= patience.stuck_s:
            return f"is busy with one call since {stuck_s:.0f} s"
        return None


class Vitals:
    """Looks at processes from time to time.

    Args:
        patience: How long signs may stay away.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._records: dict[int, _Record] = {}
        self._looked_at: float | None = None

    def look(self, folder: Path, pids: Collection[int]) -> dict[int, str]:
        """Return which of some processes hang, and how; those without signs hang only if they are stopped."""
        now = time.monotonic()
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, self._patience.longest_look_s)
        self._looked_at = now
        self._records = {pid: record for pid, record in self._records.items() if pid in pids}
        faults = {}
        for pid in pids:
            stat = Stat.of(pid)
            if stat is None or stat.state in "ZX":
                continue
            signs = Signs.read(folder, pid)
            if (record := self._records.get(pid)) is None:
                self._records[pid] = _Record(stat, signs)
                continue
            record.add(pid, stat, signs, passed_s)
            if (fault := record.fault(self._patience)) is not None:
                faults[pid] = fault
        return faults

    def executions(self) -> int:
        """Return how many executions have ended in the processes that were looked at last."""
        return sum(record.signs.executions for record in self._records.values() if record.signs is not None)
