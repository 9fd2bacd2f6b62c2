"""Makes torch's CUDA build importable without the gigabytes of CUDA libraries that it is linked to.

    python bench/device/stand_ins.py VENV/lib/python3.12/site-packages/torch/lib

torch loads cuBLAS, cuDNN and their like when it is imported and calls none of them where there is no device. So each
gets a library of its name whose functions, all that torch refers to, only return an error. The small libraries that
the import does call (cudart, cupti, cufile) are installed. Needs gcc and readelf, and no package.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# Library -> how its functions begin, for those that have no version to tell them by.
LIBRARIES = {
    "libcublas.so.13": "cublas",
    "libcublasLt.so.13": "cublasLt",
    "libcudnn.so.9": "cudnn",
    "libcufft.so.12": "cufft",
    "libcurand.so.10": "curand",
    "libcusolver.so.12": "cusolver",
    "libcusparse.so.12": "cusparse",
    "libcusparseLt.so.0": "cusparseLt",
    "libnccl.so.2": "nccl",
    "libnvshmem_host.so.3": "nvshmem",
}
_FILE = re.compile(r"Version: \d+\s+File: (\S+)")
_VERSION = re.compile(r"Name: (\S+)\s+Flags: \S+\s+Version: (\d+)")

Symbols = dict[tuple[str, str], set[str]]  # (library, version or "") -> functions


def missing(folder: Path) -> Symbols:
    """Return the functions that the libraries in `folder` want of `LIBRARIES`."""
    found: Symbols = defaultdict(set)
    for library in sorted(folder.glob("*.so")):
        versions: dict[str, tuple[str, str]] = {}
        file = ""
        for line in _readelf("--version-info", library):
            if match := _FILE.search(line):
                file = match[1]
            elif match := _VERSION.search(line):
                versions[match[2]] = (file, match[1])
        for line in _readelf("--dyn-syms", library):
            fields = line.split()
            if len(fields) < 8 or fields[6] != "UND":
                continue
            name, _, version = fields[7].partition("@")
            if version:
                found[versions[fields[8].strip("()")]].add(name)
            elif owners := [owner for owner, prefix in LIBRARIES.items() if name.startswith(prefix)]:
                found[max(owners, key=lambda owner: len(LIBRARIES[owner])), ""].add(name)
    return found


def build(folder: Path) -> None:
    """Write a stand-in for each of `LIBRARIES` into `folder`, where torch looks first."""
    wanted = missing(folder)
    for library in LIBRARIES:
        source, script = [], []
        for (owner, version), names in wanted.items():
            if owner == library:
                source += [f"int {name}(void) {{ return 1; }}" for name in sorted(names)]
                script += [f"{version} {{ global: {'; '.join(sorted(names))}; }};"] if version else []
        versions = folder / "versions.map"
        versions.write_text("\n".join(script))
        options = [f"-Wl,--version-script={versions}"] if script else []
        command = ["gcc", "-shared", "-fPIC", "-fno-builtin", "-w", f"-Wl,-soname,{library}", *options]
        command += ["-x", "c", "-", "-o", str(folder / library)]
        subprocess.run(command, input="\n".join(source), text=True, check=True)
        versions.unlink()


def _readelf(what: str, library: Path) -> list[str]:
    return subprocess.run(
        ["readelf", "--wide", what, str(library)], check=True, capture_output=True, text=True
    ).stdout.splitlines()


if __name__ == "__main__":
    build(Path(sys.argv[1]))
