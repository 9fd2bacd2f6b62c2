"""Write the hashed locks of the image: `make lock`, or `python deploy/docker/lock.py EXTRAS` for another one.

`build.lock` is what makes the wheel of fuserec, `EXTRAS.lock` what runs beside it. pip resolves for the image and not
for this machine: CPython 3.12, x86-64, glibc 2.28 or later, at the versions of `constraints.txt`. Each package has the
hash of the one file that the image takes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def requirements(extras: list[str]) -> list[str]:
    """Return what the package asks for with some extras, those that they name among themselves included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting = list(project["dependencies"]), list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(r"fuserec\[([\w,]+)\]", requirement)
            waiting += own[1].split(",") if own else []
            found += [] if own else [requirement]
    return sorted(set(found))


def resolve(asked: list[str]) -> list[str]:
    """Return a line of a lock for each package that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp"]
        command += [option for platform in PLATFORMS for option in ("--platform", platform)]
        command += ["--target", f"{folder}/target", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*command, "--report", str(report), *asked], check=True)
        installed = json.loads(report.read_text())["install"]
    lines = []
    for package in installed:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={package['metadata']['version']} --hash=sha256:{digest}\n")
    return sorted(lines)


def main(extras: str) -> None:
    """Write both locks."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for name, asked in (("build", build), (extras, requirements(extras.split(",")))):
        head = f"# Made by deploy/docker/lock.py for CPython {PYTHON} on x86-64 Linux; not to be edited.\n"
        (Path(__file__).parent / f"{name}.lock").write_text(head + "".join(resolve(asked)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runtime")
