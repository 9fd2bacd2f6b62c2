"""An install without an extra says which one to install, and ends with status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fuserec.cli import extra_for


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("typer", [], "cli"),
        ("typer", ["recommend"], "cli"),
        ("torch", ["train", "mf", "--data", "x", "--out", "y"], "train"),
        ("safetensors", ["train", "mf", "--data", "x", "--out", "y"], "train"),
        ("rich", ["inspect", "x"], "cli"),
    ],
)
def test_the_command_names_the_extra(missing: str, arguments: list[str], extra: str) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = {['fuserec', *arguments]}\n"
        "from fuserec.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if f"fuserec[{extra}]" not in done.stderr:
        pytest.fail(f"fuserec {' '.join(arguments)} without {missing}: {done.stderr}")
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("peft", ["train"], "text"),
        ("opacus", ["train"], "privacy"),
        ("onnxruntime", ["export"], "export"),
        ("onnxruntime", ["serve"], "serve"),
        ("torch", ["demo"], "train,export,serve"),
        ("torch", ["evaluate"], "train"),
        ("polars", ["data"], "cli"),
    ],
)
def test_the_extra_is_that_of_the_command(package: str, command: list[str], extra: str) -> None:
    assert extra_for(package, command) == extra
