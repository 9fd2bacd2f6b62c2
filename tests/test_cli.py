"""The command: what a user can get wrong is one line on stderr and a status, never a stack trace."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuserec import __version__, cli


def run(*arguments: str | Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run the command in this process; return its exit status and all it printed."""
    monkeypatch.setattr(sys, "argv", ["fuserec", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.fixture
def fuserec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_version(fuserec) -> None:
    assert fuserec("--version") == (0, f"fuserec {__version__}\n")


@pytest.mark.parametrize(
    "command", ["data", "train", "export", "inspect", "serve", "recommend", "evaluate", "explain", "demo"]
)
def test_help_of_each_command(fuserec, command: str) -> None:
    status, output = fuserec(command, "--help")
    assert status == 0 and "Usage" in output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(["nonsense"], 2, "No such command 'nonsense'", id="unknown command"),
        pytest.param(["train", "magic", "--data", "x", "--out", "y"], 2, "two-tower", id="unknown recipe"),
        pytest.param(
            ["train", "two-tower", "--data", "{tmp}", "--out", "{tmp}/c"], 1, "interactions.parquet", id="no data"
        ),
        pytest.param(
            ["train", "two-tower", "--data", "{tmp}/no", "--out", "{tmp}/c"], 1, "{tmp}/no", id="no data folder"
        ),
        pytest.param(["train", "two-tower", "--data", "x", "--out", "y", "--epochs", "0"], 2, "--epochs", id="epochs"),
        pytest.param(
            ["train", "sasrec", "--data", "x", "--out", "y", "--clip", "1"], 2, "without --private-epsilon", id="clip"
        ),
        pytest.param(
            ["train", "sasrec", "--data", "x", "--out", "y", "--precision", "8"],
            2,
            "expected one of 32-true",
            id="bits",
        ),
        pytest.param(["export", "{tmp}/no", "--repository", "{tmp}/r"], 1, "{tmp}/no", id="no checkpoint"),
        pytest.param(["export", "x", "--repository", "y", "--precision", "int3"], 2, "'int3'", id="unknown precision"),
        pytest.param(["export", "x", "--repository", "y", "--target", "sm1"], 2, "'sm1'", id="unknown target"),
        pytest.param(["inspect", "{tmp}"], 1, "holds no bundle", id="no repository"),
        pytest.param(["serve", "{tmp}/no"], 1, "is not a folder", id="serve nothing"),
        pytest.param(["serve", "x", "--grpc-port", "0"], 2, "--grpc-port came as 0", id="port zero"),
        pytest.param(["recommend", "--user", "1", "-k", "0"], 2, "'-k'", id="k zero"),
        pytest.param(["recommend", "--user", "-7"], 2, "user_id came as -7", id="user negative"),
        pytest.param(["recommend", "--user", "bob"], 2, "'--user'", id="user a name"),
        pytest.param(["recommend", "--url", "nowhere"], 2, "endpoint came as 'nowhere'", id="no port"),
        pytest.param(["recommend", "--url", "127.0.0.1:1"], 1, "is `fuserec serve` running there", id="server down"),
    ],
)
def test_wrong_use_is_one_clear_line(fuserec, tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    came, output = fuserec(*filled)
    assert came == status, output
    assert message.format(tmp=tmp_path) in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir()), "something half-written was left behind"


def test_missing_server_binary(fuserec, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    status, output = fuserec("serve", repository, "--tritonserver", tmp_path / "absent")
    assert status == 1 and "absent is not an executable file" in output


def test_inspect_prints_for_people_and_for_programs(fuserec, repository: Path) -> None:
    status, output = fuserec("inspect", repository)
    assert status == 0
    assert all(part in output for part in ("two-tower, int8", "300 items", "sm89", "recommend/1/index.safetensors"))
    status, output = fuserec("inspect", repository, "--json")
    assert json.loads(output)["precision"] == "int8"


def test_inspect_says_which_version_and_which_others_are_there(fuserec, repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    for model in ("encode", "search", "explain", "recommend"):
        shutil.copytree(copy / model / "1", copy / model / "2")
    status, output = fuserec("inspect", copy)
    assert status == 0 and "2, also there: 1" in output
    status, output = fuserec("inspect", copy, "--version", "1", "--json")
    assert (json.loads(output)["version"], json.loads(output)["versions"]) == (1, [1, 2])
    status, output = fuserec("inspect", copy, "--version", "3")
    assert (status, output.count("\n")) == (1, 1) and "has no version 3; it has 1, 2" in output


def test_inspect_finds_damage(fuserec, repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    (copy / "recommend" / "1" / "items.parquet").write_bytes(b"")
    status, output = fuserec("inspect", copy)
    assert status == 1 and "items.parquet has 0 bytes, the manifest says" in output


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).parent / "fuserec"
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout == f"fuserec {__version__}\n", done.stderr


def test_missing_extra_names_what_to_install(fuserec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'lightning.pytorch'", name="lightning.pytorch")

    monkeypatch.setattr("fuserec.train.recipes.get_recipe", missing)
    status, output = fuserec("train", "two-tower", "--data", tmp_path, "--out", tmp_path / "c")
    assert status == 2 and "pip install 'fuserec[train]'" in output
