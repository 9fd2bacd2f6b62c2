"""How a rival is told what to serve: names of environment variables."""

from __future__ import annotations

from typing import Final

CHECKPOINT: Final = "RIVAL_CHECKPOINT"
INDEX: Final = "RIVAL_INDEX"
THREADS: Final = "RIVAL_THREADS"
IN_POOL: Final = "RIVAL_IN_POOL"
DEVICE: Final = "RIVAL_DEVICE"
