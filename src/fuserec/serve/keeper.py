"""Ends what a launcher leaves behind when it dies: run as a program of its own, with nothing but Python's library.

`python -I -S keeper.py GROUP PREFIX` waits for the end of its standard input, which the launcher holds open, then kills
every process of a process group, stopped ones too, and removes the shared memory that they had. A launcher that ends in
order writes a byte first; then there is nothing to do.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path


def main(group: int, prefix: str) -> None:
    """Wait, then end the group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(0, 1):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    for left in Path("/dev/shm").glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
