"""The image and the compose file: read by hadolint and Compose themselves, and held against the package they carry."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
GPU = DEPLOY / "compose" / "gpu.yaml"
BIN = Path(sys.executable).parent


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **options)


def compose(*files: Path, models: Path) -> dict[str, Any]:
    """What Compose makes of some files; it needs no engine for that."""
    arguments = [argument for file in files for argument in ("--file", file)]
    environment = {"PATH": os.environ["PATH"], "FUSEREC_MODELS": str(models)}
    done = run(BIN / "docker-compose", *arguments, "config", "--format", "json", env=environment)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def instruction(name: str) -> list[str]:
    """The arguments of the last instruction of a name in the Dockerfile, in the exec form."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    found: list[str] = json.loads(re.findall(rf"^{name} (?:.* CMD )?(\[.*\])$", text, re.MULTILINE)[-1])
    return found


def test_hadolint_has_nothing_to_say() -> None:
    done = run(BIN / "hadolint", "--no-color", DOCKERFILE)
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_yamllint_has_nothing_to_say() -> None:
    files = [path for path in DEPLOY.rglob("*.y*ml") if "templates" not in path.parts]
    assert COMPOSE in files
    done = run(BIN / "yamllint", "--strict", "--config-file", DEPLOY / ".yamllint.yaml", *files)
    assert done.returncode == 0, done.stdout


def test_image_does_not_run_as_root() -> None:
    """Every stage that may run ends as another user than root, by number."""
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[2:]
    users = [re.findall(r"^USER (\S+)", stage, re.MULTILINE) for stage in stages]
    assert [found[-1] for found in users if found] == ["1000:1000", "1000:1000"]
    assert users[0], "the stage `server` says nothing of its user"


def test_entry_point_is_a_command_that_exists(tmp_path: Path) -> None:
    """With an empty folder in the place of the models it complains of that, and of no option."""
    python, *command = instruction("ENTRYPOINT") + instruction("CMD")
    assert python == "python3"
    given = [str(tmp_path) if argument == "/models" else argument for argument in command]
    done = run(sys.executable, *given, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)})
    assert done.returncode != 0
    assert "holds no bundle" in done.stderr, done.stderr


def test_health_check_tells_a_server_from_none() -> None:
    """It fails here, for want of a server, and not of a name or a bracket."""
    python, *command = instruction("HEALTHCHECK")
    assert python == "python3"
    command[-1] = command[-1].replace("8000", "1")
    done = run(sys.executable, *command)
    assert done.returncode != 0
    assert "Connection refused" in done.stderr, done.stderr


def test_build_context_is_enough_and_the_extras_exist(tmp_path: Path) -> None:
    """What .dockerignore lets through makes the wheel; pip passes over an extra that there is not with a warning."""
    context = tmp_path / "context"
    context.mkdir()
    for name in re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        source = ROOT / name
        assert source.exists(), f".dockerignore lets {name} through, which is not there"
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, context / name)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(context)]
    done = run(sys.executable, *command)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        [metadata] = [name for name in opened.namelist() if name.endswith("METADATA")]
        extras = set(re.findall(r"^Provides-Extra: (.+)$", opened.read(metadata).decode(), re.MULTILINE))
    asked = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE.read_text())
    asked += [compose(COMPOSE, GPU, models=tmp_path)["services"]["fuserec"]["build"]["args"]["EXTRAS"]]
    assert len(asked) == 3
    assert {extra for extras in asked for extra in extras.split(",")} <= extras


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, GPU)], ids=["cpu", "gpu"])
def test_compose_is_closed_to_other_machines_and_cannot_write(files: tuple[Path, ...], tmp_path: Path) -> None:
    services = compose(*files, models=tmp_path)["services"]
    assert set(services) == {"fuserec", "prometheus", "grafana"}
    for name, service in services.items():
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}, name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert volume["read_only"], f"{name} may write to {volume['source']}"
                assert Path(volume["source"]).exists(), f"{name} mounts {volume['source']}, which is not there"
    built = services["fuserec"]["build"]
    assert (Path(built["context"]) / built["dockerfile"]) == DOCKERFILE


def test_compose_asks_for_the_models() -> None:
    done = run(BIN / "docker-compose", "--file", COMPOSE, "config", env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0
    assert "FUSEREC_MODELS" in done.stderr


def test_gpu_file_asks_for_a_gpu(tmp_path: Path) -> None:
    service = compose(COMPOSE, GPU, models=tmp_path)["services"]["fuserec"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert service["build"]["target"] == "gpu"
    assert f"AS {service['build']['target']}\n" in DOCKERFILE.read_text()
    default = re.search(r'^CMD \["--start-timeout", "(\d+)"\]$', DOCKERFILE.read_text(), re.MULTILINE)
    assert default is not None, "the command of the image has changed, which this one takes the place of"
    assert service["command"] == ["--start-timeout", default[1], "--device", "cuda"]
