"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.contract import MAX_CANDIDATES
from fuserec.errors import UsageError
from fuserec.export.targets import AUTO, CPU, PRECISIONS, TARGETS, Target, check_combination, find_target

CALIBRATIONS: Final = ("max", "entropy", "percentile")


@dataclass(frozen=True)
class Gate:
    """What a precision may cost before it is refused.

    Attributes:
        max_ndcg_loss: relative loss of NDCG@10 against float32.
        min_overlap: share of the ten best by float32 that must be among the ten best.
        accept_loss: publish what was asked for all the same.
    """

    max_ndcg_loss: float = 0.01
    min_overlap: float = 0.95
    accept_loss: bool = False

    def __post_init__(self) -> None:
        for name in ("max_ndcg_loss", "min_overlap"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} came as {getattr(self, name)}, expected a share, 0 to 1")


@dataclass(frozen=True)
class ExportConfig:
    """Options of one export.

    Attributes:
        precision: `auto`, or one of `fp32`, `fp16`, `bf16`, `int8`, `fp8` and `int8-weight-only` for every target.
            `auto` builds all that a target runs and publishes the fastest that passes the gate.
        targets: what to build engines for; the CPU alone if none is named. The CPU's graph is built in any case: a
            precision that only the named targets run leaves it in float32.
        calibration: how the ranges of quantized activations are chosen: `max`, `entropy` or `percentile`.
        calibration_users: users whose real histories calibrate; the gate asks about others.
        gate: what a precision may cost.
        ranker: checkpoint of a ranker that is to reorder what is retrieved.
        candidates: how many of the best retrieved items the ranker sees.
        reference: checkpoint whose float32 graphs are the measure, where it is not the exported one.

    Raises:
        UsageError: An option makes no sense, or a target cannot run the precision.
    """

    precision: str = AUTO
    targets: tuple[str, ...] = ()
    calibration: str = "max"
    calibration_users: int = 256
    gate: Gate = Gate()
    ranker: Path | None = None
    candidates: int = 200
    reference: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in (AUTO, *PRECISIONS):
            raise UsageError(f"precision came as {self.precision!r}, expected one of {', '.join((AUTO, *PRECISIONS))}")
        if self.calibration not in CALIBRATIONS:
            raise UsageError(f"calibration came as {self.calibration!r}, expected one of {', '.join(CALIBRATIONS)}")
        if self.calibration_users < 1:
            raise UsageError(f"calibration_users came as {self.calibration_users}, expected at least 1")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise UsageError(f"candidates came as {self.candidates}, expected 1 to {MAX_CANDIDATES}")
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets or (CPU,))))
        for name in self.targets:
            check_combination(find_target(name), self.precision)

    @property
    def all_targets(self) -> list[Target]:
        """The CPU and the other targets."""
        return [TARGETS[name] for name in dict.fromkeys((CPU, *self.targets))]

    def precisions_for(self, target: Target) -> tuple[str, ...]:
        """Return what is to be built for a target."""
        if self.precision == AUTO:
            return target.precisions
        return (self.precision if self.precision in target.precisions else "fp32",)
