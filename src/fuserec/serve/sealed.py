"""Options of a program that no other user of the machine can read.

Linux shows the command line of every process to every user, and its environment to the same user alone. The inference
server takes its keys on the command line only. So an option that is secret travels in the environment, a placeholder
stands on the command line, and before the program has run its first instruction the pointer of that argument is turned
to the environment's text. There is no moment at which the command line holds the secret.

    stack of the new program     argc | argv[0] argv[1] ... argv[n] | 0 | envp ...
    /proc/PID/cmdline shows      the texts that argv pointed to when the program was loaded: `(sealed)`
    the program reads            what argv points to now: a text inside the environment

A process can be stopped there by its parent alone, with ptrace: see `docs/decisions/0019-admin-api.md`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fuserec.errors import LaunchError

# What every user sees in the place of a sealed option.
PLACEHOLDER: Final = "(sealed)"
_VARIABLE: Final = "FUSEREC_SEALED"
_PTRACE_TRACEME, _PTRACE_CONT, _PTRACE_DETACH = 0, 7, 17
_WORD: Final = struct.calcsize("P")
# Loaded here: between fork and exec nothing should be.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class CannotSeal(LaunchError):
    """This machine does not let a process trace its child."""


def variables(options: Sequence[str]) -> dict[str, str]:
    """Return the environment that carries sealed options."""
    return {f"{_VARIABLE}_{number}": option for number, option in enumerate(options)}


def wait_to_be_sealed() -> None:
    """Let this process stop at its next exec; for `preexec_fn`.

    Raises:
        OSError: The machine forbids it.
    """
    _trace(_PTRACE_TRACEME, 0)


def seal(pid: int, count: int, starts: int = 1) -> None:
    """Give a program that waits at its start its last `count` arguments, and let it run.

    To be called by the thread that started it, whose `preexec_fn` was `wait_to_be_sealed`. Afterwards nothing traces
    the process.

    Args:
        pid: The process.
        count: How many of its last arguments are sealed.
        starts: How many programs it runs one after the other until it is the one that they are for: 2 with a shell
            that becomes another program.

    Raises:
        CannotSeal: It cannot be done on this machine; the process has been killed.
    """
    try:
        _wait_for_start(pid)
        for _ in range(starts - 1):
            _trace(_PTRACE_CONT, pid)
            _wait_for_start(pid)
        _redirect(pid, count)
        _trace(_PTRACE_DETACH, pid)
    except (OSError, ValueError) as error:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise CannotSeal(f"the arguments of a new process cannot be sealed ({error})") from None


def _wait_for_start(pid: int) -> None:
    """Wait until a traced process stops before the first instruction of a program."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
        raise ValueError(f"it did not stop at its start, wait status {status:#x}")


def _trace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _redirect(pid: int, count: int) -> None:
    where = _Layout.of(pid)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        environment = os.pread(memory, where.env_end - where.env_start, where.env_start)
        (argc,) = struct.unpack("P", os.pread(memory, _WORD, where.start_stack))
        addresses = []
        for number in range(count):
            name = f"{_VARIABLE}_{number}=".encode()
            # Variables are separated by zeros; the first has none before it.
            found = (b"\0" + environment).index(b"\0" + name)
            addresses.append(where.env_start + found + len(name))
        slot = where.start_stack + _WORD * (1 + argc - count)
        os.pwrite(memory, struct.pack(f"{count}P", *addresses), slot)
    finally:
        os.close(memory)


class _Layout(NamedTuple):
    """Addresses in the memory of a program, see proc_pid_stat(5)."""

    start_stack: int
    env_start: int
    env_end: int

    @classmethod
    def of(cls, pid: int) -> _Layout:
        # The name of the program stands in parentheses and may hold any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start_stack, env_start, env_end = (int(fields[field - 3]) for field in (28, 50, 51))
        if not 0 < env_start < env_end:
            raise ValueError("the kernel does not say where its memory is")
        return cls(start_stack, env_start, env_end)
