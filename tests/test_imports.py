"""Who may import whom, and what importing a room costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fuserec

ROOT = Path(fuserec.__file__).parent
COMMON = {"contract", "errors", "files", "id_map", "journal", "manifest", "records", "rules", "tokens", "traffic"}
COMMON |= {"untrusted"}
# Room -> the rooms and modules of fuserec that it may import; cli, demo and display stand above all rooms.
ALLOWED = {
    "contract": set(),
    "errors": set(),
    "files": set(),
    "untrusted": set(),
    "records": set(),
    "id_map": {"untrusted"},
    "rules": {"untrusted"},
    "journal": {"records"},
    "manifest": {"contract", "errors", "files", "id_map", "records", "untrusted"},
    "traffic": {"errors", "files", "manifest", "records", "untrusted"},
    "catalogue": {"errors", "traffic", "untrusted"},
    "tokens": {"errors", "untrusted"},
    "kernels": {"contract", "errors", "files", "untrusted"},
    "models": {"contract", "errors", "files", "id_map", "tokens", "untrusted"},
    "train": COMMON | {"models"},
    "importers": COMMON | {"models", "train"},
    "export": COMMON | {"kernels", "models", "serve"},
    "serve": COMMON | {"kernels", "client"},
    "client": {"contract", "errors", "rules"},
    "model_repository": {"serve"},
}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of fuserec that a source file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write it out"
            names |= {node.module or ""}
            if node.module == "fuserec":
                names |= {f"fuserec.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return {name.split(".")[1] for name in names if name.startswith("fuserec.")}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_it_may(room: str) -> None:
    files = list((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]
    assert files, f"no sources found for {room}"
    for path in files:
        extra = imported_rooms(path) - ALLOWED[room] - {room}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}; {room} may import {sorted(ALLOWED[room])}"


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        pytest.param("fuserec.client", ["torch", "polars", "onnx", "triton", "numba"], id="client"),
        pytest.param("fuserec.kernels", ["torch", "triton", "numba", "polars"], id="kernels"),
        pytest.param("fuserec.serve.pipeline", ["torch", "triton"], id="pipeline"),
        pytest.param("fuserec.export", ["torch", "onnx", "polars", "numpy"], id="export"),
        pytest.param("fuserec.export.unchanged", ["torch", "onnx", "polars", "numpy"], id="unchanged"),
        pytest.param("fuserec.display", ["torch", "polars", "numpy"], id="display"),
        pytest.param("fuserec.cli", ["torch", "polars", "numba", "tritonclient"], id="cli"),
    ],
)
def test_import_stays_light(module: str, banned: list[str]) -> None:
    code = f"import {module}, sys; print([name for name in {banned} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"importing {module} also imports {done.stdout.strip()}"


def test_root_links_lead_to_the_rooms() -> None:
    root = ROOT.parents[1]
    for room in ("kernels", "export", "client", "model_repository"):
        assert (root / room).resolve() == ROOT / room, f"the link {room} does not lead to src/fuserec/{room}"
