"""How a training run is carried out; what is learned is the recipe's matter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """What surrounds a training run.

    Attributes:
        progress: whether to draw a progress bar on stderr.
    """

    progress: bool = True
