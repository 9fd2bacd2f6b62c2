"""Keep the shared memory of the server to its own user.

Requests, with the ids of users, pass to the models through regions in /dev/shm. The server makes them for its user
alone where its umask says so, and then sets their mode to 0644 by a call of its own (Boost's default permissions; there
is no option). To change that afterwards would be too late for whoever has opened a region meanwhile. So the call itself
is made to do nothing: a seccomp filter in the server and its models answers `fchmod(fd, 0644)` with success, and lets
everything else pass.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_SPEC_ALLOW: Final = 4  # without it, kernels before 5.16 slow the process down against speculation
_RET_ERRNO_0, _RET_ALLOW = 0x0005_0000, 0x7FFF_0000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_MODE = 0, 4, 24  # of struct seccomp_data; the mode is the second argument
_OPENED_UP: Final = 0o644
# Of a machine: its number in audit.h, and those of the system calls `seccomp` and `fchmod`.
_NUMBERS: Final = {"x86_64": (0xC000_003E, 317, 91), "aarch64": (0xC000_00B7, 277, 52)}

# Loaded here: between fork and exec nothing should be.
_libc = ctypes.CDLL(None, use_errno=True)
_arch, _seccomp, _fchmod = _NUMBERS.get(platform.machine(), (0, -1, -1))


def _instruction(code: int, value: int, if_equal: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_equal, otherwise, value)


_FILTER = ctypes.create_string_buffer(
    b"".join(
        [
            _instruction(_LOAD, _OFFSET_ARCH),
            _instruction(_JUMP_IF_EQUAL, _arch, 0, 5),
            _instruction(_LOAD, _OFFSET_NR),
            _instruction(_JUMP_IF_EQUAL, _fchmod & 0xFFFF_FFFF, 0, 3),
            _instruction(_LOAD, _OFFSET_MODE),
            _instruction(_JUMP_IF_EQUAL, _OPENED_UP, 0, 1),
            _instruction(_RETURN, _RET_ERRNO_0),
            _instruction(_RETURN, _RET_ALLOW),
        ]
    )
)
_PROGRAM = ctypes.create_string_buffer(struct.pack("HP", len(_FILTER.raw) // 8, ctypes.addressof(_FILTER)))


def can_keep_private() -> bool:
    """Return whether this machine has what `keep_private` needs."""
    action = ctypes.c_uint32(_RET_ERRNO_0)
    return _seccomp > 0 and _libc.syscall(_seccomp, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0


def keep_private() -> None:
    """Make files that this process and its children create stay as their umask says; for `preexec_fn`.

    The process can gain no privileges from then on, which an unprivileged one has to promise first.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if _libc.syscall(_seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, _PROGRAM) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
