"""The wheel holds all that the command needs, and works from a folder outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The build back end is in the environment already: nothing is fetched.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


def test_wheel_contains_the_model_repository(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for model in ("recommend", "encode", "search", "explain", "rank"):
        assert f"fuserec/model_repository/{model}/config.pbtxt" in names
        assert f"fuserec/model_repository/{model}/1/model.py" in names
    assert "fuserec/py.typed" in names
    assert not [name for name in names if name.endswith("ruff.toml") or name.startswith(("tests", "kernels", "client"))]


def test_wheel_works_outside_the_checkout(wheel: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    """Unpack the wheel elsewhere and export with it: the code and the templates come from there."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"""
import fuserec
assert fuserec.__file__.startswith({str(site)!r}), fuserec.__file__
from pathlib import Path
from fuserec.export import ExportConfig, export_checkpoint
export_checkpoint(Path({str(checkpoint_folder)!r}), Path("repository"), ExportConfig(precision="fp32"))
"""
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = {
        str(path.relative_to(tmp_path / "repository")) for path in (tmp_path / "repository").glob("*/config.pbtxt")
    }
    assert written == {f"{model}/config.pbtxt" for model in ("recommend", "encode", "search", "explain")}
