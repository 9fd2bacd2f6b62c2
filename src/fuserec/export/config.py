"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.contract import MAX_CANDIDATES
from fuserec.errors import UsageError

PRECISIONS: Final = ("fp32", "fp16", "int8")
# TensorRT-RTX targets by compute capability, as NVIDIA names its GPU generations.
TARGETS: Final = {
    "sm80": "Ampere, A100",
    "sm86": "Ampere, A10 and RTX 30",
    "sm89": "Ada, L4 and RTX 40",
    "sm120": "Blackwell, RTX 50",
}


@dataclass(frozen=True)
class ExportConfig:
    """Options of one export.

    Attributes:
        precision: Precision of the engines' matrix products: `fp32`, `fp16` or `int8`.
        targets: GPU targets to build TensorRT-RTX engines for; the CPU's ONNX Runtime graph is always made.
        calibration_users: Users whose real histories calibrate the int8 ranges.
        ranker: Checkpoint of a ranker that is to reorder what is retrieved.
        candidates: How many of the best retrieved items the ranker sees.
    """

    precision: str = "int8"
    targets: tuple[str, ...] = ()
    calibration_users: int = 256
    ranker: Path | None = None
    candidates: int = 200

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision came as {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if unknown := [target for target in self.targets if target not in TARGETS]:
            known = ", ".join(f"{name} ({what})" for name, what in TARGETS.items())
            raise UsageError(f"target came as {unknown[0]!r}, expected one of {known}")
        if self.calibration_users < 1:
            raise UsageError(f"calibration_users came as {self.calibration_users}, expected at least 1")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise UsageError(f"candidates came as {self.candidates}, expected 1 to {MAX_CANDIDATES}")
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets)))
