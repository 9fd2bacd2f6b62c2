"""How a training run is carried out; what is learned is the recipe's matter."""

from __future__ import annotations

from dataclasses import dataclass

from fuserec.train.start import Start


@dataclass(frozen=True)
class Run:
    """What surrounds a training run.

    Attributes:
        progress: whether to draw a progress bar on stderr.
        start: the checkpoint whose weights training starts with; random weights if None.
    """

    progress: bool = True
    start: Start | None = None
