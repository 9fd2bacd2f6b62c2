"""The behaviour suite runs without a test runner, and says what does not hold."""

from __future__ import annotations

import pytest

from bench import behaviour
from fuserec.kernels import ItemIndex


def test_the_suite_holds_on_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert behaviour.main(["--backend", "reference"]) == 0
    held = int(capsys.readouterr().out.split()[1])
    assert held >= 60, "all functions of the suite, with all their parameters"


def test_what_does_not_hold_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    search = ItemIndex.search
    monkeypatch.setattr(ItemIndex, "search", lambda self, query, k, **given: search(self, -query, k, **given))
    assert behaviour.main(["--backend", "cpu", "--match", "any_batch"]) == 1
    out, err = capsys.readouterr()
    assert out == "cpu: 0 held, 5 did not\n"
    assert "test_any_batch[17]" in err and "AssertionError" in err


def test_no_case_is_no_success() -> None:
    assert behaviour.main(["--backend", "cpu", "--match", "^nothing$"]) == 1
