"""What can be exported for: the targets, and the precisions that each of them runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fuserec.errors import UsageError

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "fp8", "int8-weight-only")
AUTO: Final = "auto"
CPU: Final = "cpu"

Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Target:
    """Something that runs engines.

    Attributes:
        name: as `--target` takes it.
        what: hardware, for people.
        runtime: `onnxruntime`, `tensorrt-rtx`, or `tensorrt`, which builds only on the GPU that it builds for.
        precisions: what it runs, by the rate of its matrix products, the fastest first. Where an engine can be timed,
            it is; this order decides for hardware that is not here.
        refuses: why it does not run the others.
    """

    name: str
    what: str
    runtime: str
    precisions: tuple[str, ...]
    refuses: dict[str, str]

    @property
    def kind(self) -> Kind:
        """Which graphs it runs."""
        return "cpu" if self.name == CPU else "gpu"

    @property
    def capability(self) -> str:
        """Compute capability as the libraries spell it, `sm89`; `cpu` for the CPU."""
        return self.name.removeprefix("tensorrt-")


_NO_FP8: Final = "tensor cores multiply 8-bit floats from sm89 on"
_NO_BF16: Final = "tensor cores multiply bfloat16 from sm80 on"
_AMPERE: Final = ("int8", "fp16", "bf16", "int8-weight-only", "fp32")
_ADA: Final = ("fp8", *_AMPERE)


def _rtx(name: str, what: str, precisions: tuple[str, ...], refuses: dict[str, str]) -> Target:
    return Target(name, what, "tensorrt-rtx", precisions, refuses)


def _tensorrt(name: str, what: str, precisions: tuple[str, ...], refuses: dict[str, str]) -> Target:
    return Target(f"tensorrt-{name}", what, "tensorrt", precisions, refuses)


TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            CPU,
            "any x86-64 or ARM processor",
            "onnxruntime",
            ("int8", "int8-weight-only", "fp32", "fp16"),
            {
                "bf16": "ONNX Runtime has no bfloat16 arithmetic on a CPU",
                "fp8": "ONNX Runtime has no 8-bit floats on a CPU",
            },
        ),
        _rtx(
            "sm75",
            "Turing: T4, RTX 20",
            ("int8", "fp16", "int8-weight-only"),
            {
                "fp32": "TensorRT-RTX has no float32 matrix products for Turing",
                "bf16": _NO_BF16,
                "fp8": _NO_FP8,
            },
        ),
        _rtx("sm80", "Ampere: A100", _AMPERE, {"fp8": _NO_FP8}),
        _rtx("sm86", "Ampere: A10, RTX 30", _AMPERE, {"fp8": _NO_FP8}),
        _rtx("sm89", "Ada: L4, RTX 40", _ADA, {}),
        _rtx("sm120", "Blackwell: RTX 50", _ADA, {}),
        _tensorrt("sm80", "Ampere: A100", _AMPERE, {"fp8": _NO_FP8}),
        _tensorrt("sm89", "Ada: L4, L40", _ADA, {}),
        _tensorrt("sm90", "Hopper: H100", _ADA, {}),
        _tensorrt("sm100", "Blackwell: B200", _ADA, {}),
    )
}
# Built ahead of time, on any machine.
AHEAD_OF_TIME: Final = tuple(name for name, target in TARGETS.items() if target.runtime == "tensorrt-rtx")


def find_target(name: str) -> Target:
    """Return the target of that name.

    Raises:
        UsageError: There is none; the message names those that there are.
    """
    if name in TARGETS:
        return TARGETS[name]
    hint = f"; TensorRT-RTX has no such target, tensorrt-{name} has" if f"tensorrt-{name}" in TARGETS else ""
    known = ", ".join(f"{target.name} ({target.what})" for target in TARGETS.values())
    raise UsageError(f"target came as {name!r}{hint}; expected one of {known}")


def check_combination(target: Target, precision: str) -> None:
    """Raise unless a target runs a precision.

    Raises:
        UsageError: It does not; the message says why and names the nearest precision that it runs.
    """
    if precision in (AUTO, *target.precisions):
        return
    nearest = {"fp8": "int8", "bf16": "fp16", "fp32": "fp16"}[precision]
    if nearest not in target.precisions or (precision == "bf16" and target.name == CPU):
        nearest = "fp32"
    raise UsageError(
        f"{target.name} ({target.what}) does not run {precision}: {target.refuses[precision]}; "
        f"the nearest that it runs is {nearest}"
    )
