"""Options of an export are checked before anything is built."""

import pytest

from fuserec.errors import UsageError
from fuserec.export import PRECISIONS, TARGETS, ExportConfig, Gate
from fuserec.export.targets import Target


def test_the_fastest_that_passes_is_the_default() -> None:
    config = ExportConfig()
    assert (config.precision, config.targets) == ("auto", ("cpu",))
    assert (config.gate.max_ndcg_loss, config.gate.min_overlap, config.gate.accept_loss) == (0.01, 0.95, False)


@pytest.mark.parametrize(
    ("precision", "target", "reason"),
    [
        ("fp8", "sm80", "8-bit floats from sm89 on; the nearest that it runs is int8"),
        ("fp8", "sm75", "8-bit floats from sm89 on; the nearest that it runs is int8"),
        ("fp32", "sm75", "no float32 matrix products for Turing; the nearest that it runs is fp16"),
        ("bf16", "sm75", "bfloat16 from sm80 on; the nearest that it runs is fp16"),
        ("fp8", "tensorrt-sm80", "8-bit floats from sm89 on; the nearest that it runs is int8"),
        ("bf16", "cpu", "no bfloat16 arithmetic on a CPU; the nearest that it runs is fp32"),
        ("fp8", "cpu", "no 8-bit floats on a CPU; the nearest that it runs is int8"),
    ],
)
def test_what_a_target_cannot_run_is_refused_before_anything_is_built(precision: str, target: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{target} .* does not run {precision}: .*{reason}"):
        ExportConfig(precision, () if target == "cpu" else (target,))


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_every_target_runs_or_refuses_every_precision(target: Target) -> None:
    assert sorted((*target.precisions, *target.refuses)) == sorted(PRECISIONS)


def test_a_target_of_the_other_library_is_named() -> None:
    with pytest.raises(UsageError, match="TensorRT-RTX has no such target, tensorrt-sm90 has"):
        ExportConfig(targets=("sm90",))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_the_gate_takes_shares(value: float) -> None:
    with pytest.raises(UsageError, match=f"min_overlap came as {value}, expected a share"):
        Gate(min_overlap=value)


def test_unknown_calibration_lists_the_known() -> None:
    with pytest.raises(UsageError, match="calibration came as 'magic', expected one of max, entropy, percentile"):
        ExportConfig(calibration="magic")


def test_repeated_targets_count_once() -> None:
    assert ExportConfig(targets=("sm89", "sm80", "sm89")).targets == ("sm89", "sm80")


def test_the_cpu_comes_along_in_what_it_runs() -> None:
    config = ExportConfig("fp8", ("sm89",))
    assert [(target.name, config.precisions_for(target)) for target in config.all_targets] == [
        ("cpu", ("fp32",)),
        ("sm89", ("fp8",)),
    ]
    assert ExportConfig("int8", ("sm89",)).precisions_for(TARGETS["cpu"]) == ("int8",)


def test_unknown_precision_lists_the_known() -> None:
    with pytest.raises(
        UsageError,
        match="precision came as 'int3', expected one of auto, fp32, fp16, bf16, int8, fp8, int8-weight-only",
    ):
        ExportConfig(precision="int3")


def test_unknown_target_lists_the_known() -> None:
    with pytest.raises(UsageError, match="target came as 'sm42'; expected one of cpu") as caught:
        ExportConfig(targets=("sm80", "sm42"))
    assert all(target in str(caught.value) for target in TARGETS)


def test_calibration_needs_users() -> None:
    with pytest.raises(UsageError, match="calibration_users came as 0"):
        ExportConfig(calibration_users=0)
