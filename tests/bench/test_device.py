"""The script for a GPU host runs from end to end without one, writes what it should, and what it wrote can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.device import __main__ as device
from bench.device import _steps, aims, report
from bench.device._rows import Rows, read_rows, table
from bench.device._steps import STEPS, TOTAL_S, Step, carry_out

ROOT = Path(__file__).resolve().parents[2]
NAMES = [step.name for step in STEPS]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script leaves behind when it is rehearsed."""
    out = tmp_path_factory.mktemp("rehearsal") / "out"
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "bench/device/run.sh"), "--rehearse"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (out.parent / "printed.txt").write_text(done.stdout)
    return out


def test_every_step_ends_and_says_so(rehearsed: Path) -> None:
    content = json.loads((rehearsed / "device.json").read_text())
    assert {name: step["state"] for name, step in content["steps"].items()} == dict.fromkeys(NAMES, "done")
    for name in NAMES:
        assert content["steps"][name]["rows"] == read_rows(rehearsed / f"{name}.csv")
        assert f"== {name} done" in (rehearsed.parent / "printed.txt").read_text()


def test_the_header_says_what_ran_where(rehearsed: Path) -> None:
    header = json.loads((rehearsed / "device.json").read_text())["header"]
    assert header["rehearsal"] is True and header["card"] == "none"
    assert {"date", "commit", "capability", "driver", "python", "torch", "triton", "numpy"} <= header.keys()


def test_few_files_none_of_them_deep(rehearsed: Path) -> None:
    files = [path for path in rehearsed.rglob("*") if path.is_file()]
    assert len(files) <= 8 and all(len(path.relative_to(rehearsed).parts) <= 2 for path in files)
    assert {path.name for path in files} == {"device.json", "log.txt", *(f"{name}.csv" for name in NAMES)}


def test_a_rehearsal_cannot_be_taken_for_a_measurement(rehearsed: Path) -> None:
    assert {row["source"] for row in read_rows(rehearsed / "limits.csv")} == {"rehearsal"}
    assert report._title(rehearsed).startswith("REHEARSAL")
    mine = aims.ours(read_rows(rehearsed / "times.csv"), rows=640, batch=1)
    assert [row["predicted_for"] for row in mine] == ["rehearsal"]
    assert {row["result"] for row in aims.evaluate(rehearsed)} == {aims.UNKNOWN}


def test_the_rehearsal_asked_the_interpreted_kernels_and_found_no_fault(rehearsed: Path) -> None:
    rows = read_rows(rehearsed / "correctness.csv")
    assert "backend 'interpret'" in (rehearsed / "log.txt").read_text()
    assert {row["check"] for row in rows} == {"differential", "suite", "sanitizer", "total"}
    assert all(row["wrong"] == row["changed"] == 0 for row in rows if row["check"] == "differential")
    assert sum(row["queries"] or 0 for row in rows) > 100


def test_every_rival_is_timed_beside_ours(rehearsed: Path) -> None:
    rows = read_rows(rehearsed / "times.csv")
    first = [row for row in rows if (row["batch"], row["place"], row["dtype"]) == (1, "device", "float32")]
    names = {row["contender"] for row in first if row["state"] == "measured"}
    # The CPU has no product of int8 matrices of these sizes in every torch.
    assert names >= {"fuserec", "eager fp32", "eager fp16", "eager bf16", "two-stage fp16", "compiled fp16"}
    assert all(
        row["agrees_pct"] >= 60 for row in rows if row["state"] == "measured" and row["exact"] and row["agrees_pct"]
    )


def test_the_report_and_the_plot_read_what_was_written(
    rehearsed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(rehearsed), "--plot", str(tmp_path / "times.png")]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}: " in printed for name in NAMES)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


# --- steps ---


def step(tmp_path: Path, code: str) -> Step:
    """A step that runs some code: `python -m` finds it on the path."""
    (tmp_path / "a_step.py").write_text(code)
    return Step("a_step", "a_step", 60.0, "")


@pytest.mark.parametrize(
    ("code", "limit_s", "state"),
    [
        ("print('measured')", 60, "done"),
        ("raise SystemExit(1)", 60, "failed"),
        ("import os; os.abort()", 60, "failed"),
        ("import time; print('measured', flush=True); time.sleep(60)", 2, "stopped"),
        # What a step leaves running is ended with it.
        ("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])", 60, "done"),
    ],
    ids=["done", "failed", "crashed", "stopped", "left_running"],
)
def test_a_step_cannot_take_the_others_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, limit_s: float, state: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = carry_out(step(tmp_path, code), tmp_path, limit_s=limit_s, rehearse=True, log=tmp_path / "log.txt")
    assert ended.state == state and ended.seconds < 30
    assert b"measured" in (tmp_path / "log.txt").read_bytes() or "measured" not in code


def test_the_limits_of_all_steps_fit_into_the_run() -> None:
    assert sum(step.limit_s for step in STEPS) <= TOTAL_S <= 480


def test_without_a_device_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert device.main(["--out", str(tmp_path / "out")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_step_alone_with_a_limit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_steps, "REHEARSAL_LIMIT_S", 60.0)
    assert device.main(["--out", str(tmp_path), "--rehearse", "--only", "limits", "--limit", "limits=50"]) == 0
    assert list(json.loads((tmp_path / "device.json").read_text())["steps"]) == ["limits"]


@pytest.mark.parametrize("limit", ["times", "times=", "times=0", "nothing=3", "times=a"])
def test_a_limit_that_makes_no_sense_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        device.parse(["--limit", limit])
    assert f"invalid limit={limit!r}" in capsys.readouterr().err


def test_the_steps_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES


# --- rows ---


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.csv")
    rows.add(name="a, b", count=3, share=0.5, sound=True)
    rows.add(name="c", other=None, sound=False)
    assert read_rows(tmp_path / "rows.csv") == [
        {"name": "a, b", "count": 3, "share": 0.5, "sound": True, "other": None},
        {"name": "c", "count": None, "share": None, "sound": False, "other": None},
    ]
    assert read_rows(tmp_path / "none.csv") == []


def test_a_table_leaves_out_what_no_row_fills() -> None:
    assert table([{"a": 1, "b": None, "c": "x"}, {"a": 20, "b": None, "c": None}]) == [" a  c", " 1  x", "20  -"]
