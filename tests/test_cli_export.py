"""`fuserec export --prune --drop-layers`: a smaller checkpoint is made, told about, and exported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuserec import cli
from fuserec.models.checkpoint import Checkpoint
from tests.test_cli import run


@pytest.fixture
def fuserec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(*arguments, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture(scope="module")
def sasrec(untrained: Callable[[str, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sasrec") / "checkpoint"
    untrained("sasrec", folder)
    return folder


def test_a_smaller_model_is_exported_and_kept(
    sasrec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--prune", "0.5", "--drop-layers", "1", "--fine-tune-epochs", "0", "--precision", "fp32", "--json"]
    options += ["--accept-quality-loss"]
    folders = ["--repository", str(tmp_path / "repository"), "--save-shrunk", str(tmp_path / "shrunk")]
    monkeypatch.setattr(sys, "argv", ["fuserec", "export", str(sasrec), *folders, *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    said = capsys.readouterr()
    manifest: dict[str, Any] = json.loads(said.out)
    kept = Checkpoint.load(tmp_path / "shrunk")
    assert kept.arguments["n_blocks"] == 1
    assert manifest["metrics"]["shrunk"] == kept.metrics["shrunk"]
    assert "50% of the hidden units and 1 layers taken out" in said.err and "as it was, test" in said.err


def test_it_is_trained_in_vain_for_no_folder(sasrec: Path, tmp_path: Path, fuserec: Callable[..., Any]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    options = ["--prune", "0.5", "--save-shrunk", str(tmp_path / "taken")]
    status, output = fuserec("export", sasrec, "--repository", tmp_path / "repository", *options)
    assert status == 1 and "not replacing it" in output
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--data", "x"], 2, "--data or --save-shrunk came without --prune or --drop-layers"),
        (["--drop-layers", "2", "--fine-tune-epochs", "0"], 2, "this sasrec has 2 layers; expected 1 to 1"),
        (["--drop-layers", "1"], 1, "recipe is None; expected the options of sasrec"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: list[str], status: int, message: str, sasrec: Path, tmp_path: Path, fuserec: Callable[..., Any]
) -> None:
    found, output = fuserec("export", sasrec, "--repository", tmp_path / "repository", *options)
    assert found == status and message in output
    assert not (tmp_path / "repository").exists()
