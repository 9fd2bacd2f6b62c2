"""Options of an export are checked before anything is built."""

import pytest

from fuserec.errors import UsageError
from fuserec.export import PRECISIONS, TARGETS, ExportConfig


@pytest.mark.parametrize("precision", PRECISIONS)
def test_known_precision(precision: str) -> None:
    assert ExportConfig(precision=precision).precision == precision


def test_repeated_targets_count_once() -> None:
    assert ExportConfig(targets=("sm89", "sm80", "sm89")).targets == ("sm89", "sm80")


def test_unknown_precision_lists_the_known() -> None:
    with pytest.raises(UsageError, match="precision came as 'int3', expected one of fp32, fp16, int8"):
        ExportConfig(precision="int3")


def test_unknown_target_lists_the_known() -> None:
    with pytest.raises(UsageError, match="target came as 'sm42', expected one of sm80") as caught:
        ExportConfig(targets=("sm80", "sm42"))
    assert all(target in str(caught.value) for target in TARGETS)


def test_calibration_needs_users() -> None:
    with pytest.raises(UsageError, match="calibration_users came as 0"):
        ExportConfig(calibration_users=0)
