"""Compiled code comes with an installation: found by content, wherever and whenever the files were put there."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llvmlite import binding

import fuserec
from fuserec.errors import FuserecError, UsageError
from fuserec.kernels.compiling import compile_level, levels_named
from fuserec.kernels.search import _numba_cache
from fuserec.kernels.search.cpu_levels import AMX, AVX2, LEVELS, VNNI, level_for, level_named

PACKAGE = Path(fuserec.__file__).parent

# Searches in every way there is, as a model does before it is ready, and prints how many functions that compiled.
SEARCH = """
import json, sys
from numba.core import event
import numpy as np
import fuserec
from fuserec.kernels import ItemIndex, KnownQueries
from fuserec.kernels.search import _numba_jit
index = ItemIndex.build(np.eye(50, 16, dtype=np.float32) + 0.1)
known = KnownQueries(index, np.ones((2, 16), np.float32), index.excluded_rows(np.arange(3), np.array([0, 3])))
with event.install_recorder("numba:compile") as recorder:
    index.warm_up()
    known.warm_up()
    found = known.search(np.zeros(1, np.int64), np.ones(1, np.int64), 2)
    index.search(np.ones((3, 16), np.float32), 40, exclude={1})
compiled = sum(happened.is_start for _, happened in recorder.buffer)
folders = _numba_jit.FOLDERS
print(json.dumps([fuserec.__file__, compiled, str(folders.installed), str(folders.written), found.ids.tolist()]))
"""


def search_in(tree: Path, **environment: str) -> tuple[int, Path, Path]:
    """Search with the package in a tree, and return how many functions were compiled, and the folders."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "FUSEREC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH],
        env=clean | {"PYTHONPATH": str(tree)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, compiled, installed, written, ids = json.loads(done.stdout)
    assert Path(file).parents[1] == tree and len(ids[0]) == 2
    return compiled, Path(installed), Path(written)


@pytest.fixture(scope="module")
def compiled() -> Path:
    """Have this machine's level compiled in this tree, and return the folder."""
    _, installed, written = search_in(PACKAGE.parent)
    assert installed == written, "the tree that is tested cannot be written to"
    return installed


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    """Return a copy of the package, its files of another time, with what is compiled."""
    tree = tmp_path / "elsewhere"
    shutil.copytree(PACKAGE, tree / "fuserec", ignore=shutil.ignore_patterns("*.pyc", "cp3*", "tmp*"))
    for path in tree.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    shutil.copytree(compiled, tree / "fuserec" / compiled.relative_to(PACKAGE))
    return tree


def test_a_copy_with_other_times_compiles_nothing(copy: Path) -> None:
    count, installed, _ = search_in(copy)
    assert installed.is_relative_to(copy)
    assert count == 0, f"{count} functions were compiled, and all of them came with the copy"


def test_compiled_code_may_be_read_only_and_elsewhere(compiled: Path, copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "fuserec" / compiled.parent.relative_to(PACKAGE))
    shutil.copytree(compiled, tmp_path / "layer" / compiled.name)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "layer").rglob("*"))
    count, installed, _ = search_in(copy, FUSEREC_COMPILED=str(tmp_path / "layer"))
    assert installed == tmp_path / "layer" / compiled.name
    assert count == 0
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "layer").rglob("*")) == before


def test_what_is_compiled_ahead_is_all_that_a_search_calls(compiled: Path, tmp_path: Path) -> None:
    level = next(level for level in LEVELS if f"-{level.name}-" in compiled.name)
    shutil.copytree(compiled, tmp_path / compiled.name)
    ahead = compile_level(level, tmp_path)
    assert ahead.folder == str(tmp_path / compiled.name)
    assert ahead.functions == 0, "it compiles for arguments of other types than those of a search"


def test_a_damaged_file_is_made_anew(compiled: Path, copy: Path) -> None:
    folder = copy / "fuserec" / compiled.relative_to(PACKAGE)
    (index,) = folder.glob("_numba_candidates.allocate_candidates-*.nbi")
    index.write_bytes(index.read_bytes()[:40])
    count, _, _ = search_in(copy)
    assert 0 < count < 50, "the rest is there"
    assert search_in(copy)[0] == 0


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("kernels/packed.py", "GROUP: Final = 16", "GROUP: Final = 32"),
        ("kernels/search/keys.py", "EMPTY", "EMPTY_KEY"),
        ("kernels/search/_numba_rescore.py", "_AHEAD: Final = 8", "_AHEAD: Final = 9"),
        ("contract.py", "NO_ID", "NONE"),
    ],
)
def test_every_edit_gives_another_folder(tmp_path: Path, file: str, old: str, new: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fuserec", ignore=shutil.ignore_patterns("__pycache__"))
    before = _numba_cache.stamp(tmp_path / "fuserec")
    assert before == _numba_cache.stamp(), "a copy is the same"
    edited = tmp_path / "fuserec" / file
    text = edited.read_text()
    assert old in text, f"{file} no longer has {old!r}"
    times = edited.stat()
    edited.write_text(text.replace(old, new))
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _numba_cache.stamp(tmp_path / "fuserec") != before


def imports(module: str) -> set[str]:
    """Return the modules of fuserec whose names a module has: those whose constants it may freeze."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fuserec"):
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name for name in inner if PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py").is_file()}
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("fuserec")}
    return found


def test_the_hash_covers_all_that_compiled_code_is_made_of() -> None:
    covered = {path.relative_to(PACKAGE.parent) for path in _numba_cache.sources()}
    waiting = {f"fuserec.kernels.search.{path.stem}" for path in (PACKAGE / "kernels" / "search").glob("_numba*.py")}
    # They hold nothing that compiled functions read: errors, locks, the device's half.
    apart = {"fuserec", "fuserec.errors", "fuserec.files", "fuserec.untrusted", "fuserec.kernels.search._cuda"}
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen or any(module == one or module.startswith(f"{one}.") for one in apart if one != "fuserec"):
            continue
        seen.add(module)
        waiting |= imports(module) - seen
    missing = {
        module
        for module in seen - {"fuserec"}
        if not {Path(*module.split(".")).with_suffix(".py"), Path(*module.split("."), "__init__.py")} & covered
    }
    assert len(seen) > 20 and not missing, f"{sorted(missing)} can be in compiled code and are not hashed"


def test_levels() -> None:
    assert level_for(AMX.features | {"sse4a"}) == AMX
    assert level_for(VNNI.features) == VNNI
    assert level_for(AMX.features - {"avx512vnni"}) == AVX2
    assert level_for(frozenset({"sse2"})) is None
    assert level_named(VNNI.cpu, VNNI.llvm_features) == VNNI and level_named("znver4", "+avx2") is None
    assert [level.name for level in levels_named([])] == ["amx", "vnni", "avx2"]
    assert levels_named(["avx2", "avx2"]) == [AVX2]
    with pytest.raises(UsageError, match="invalid target_cpu=sse: must be amx, vnni, avx2"):
        levels_named(["sse"])


def test_llvm_knows_every_feature() -> None:
    known = set(binding.get_host_cpu_features())
    for level in LEVELS:
        assert level.features <= known, f"{level.name}: {sorted(level.features - known)}"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FuserecError, match="cannot write compiled code to .*file/inside"):
        compile_level(AVX2, tmp_path / "file" / "inside")


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_level_is_compiled_on_any_machine(
    level: object, tmp_path: Path, fuserec: Callable[..., tuple[int, str]]
) -> None:
    name = level.name  # type: ignore[attr-defined]
    status, printed = fuserec("compile", "--target-cpu", name, "--to", tmp_path, "--json")
    assert status == 0, printed
    (done,) = json.loads(printed)
    assert done["functions"] > 50 and done["target_cpu"] == name and Path(done["folder"]).parent == tmp_path
    (again,) = json.loads(fuserec("compile", "--target-cpu", name, "--to", tmp_path, "--json")[1])
    assert again["functions"] == 0
