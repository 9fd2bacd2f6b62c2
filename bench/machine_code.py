"""Reads from a compiled kernel what it takes and what it executes, with the tools that come in Triton's wheel."""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

from bench.occupancy import occupancy
from fuserec.kernels.aot import Variant, compile_variant

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
# A load from global memory into registers, or by cp.async into shared memory; the width is among the suffixes.
_LOAD = re.compile(r"\b(?:LDG|LDGSTS)((?:\.\w+)*)\b")
_MMA = re.compile(r"\b((?:I|H|D|IG|HG|QG)MMA|UTC\w*MMA)\b")
_SPILL = re.compile(r"\b(?:STL|LDL)\b")


@dataclass(frozen=True)
class Figures:
    """What one variant is on one architecture.

    Attributes:
        registers: Registers a thread.
        spill_bytes: Stack and local memory a thread, which are spills.
        spill_instructions: Loads and stores of local memory.
        shared_bytes: Shared memory a program.
        occupancy: Share of a multiprocessor's warps that can be resident.
        load_bytes: Narrowest load of the table, bytes a thread; 0 if the kernel reads none.
        asynchronous: The loads of the table are cp.async.
        mma: Tensor-core instructions, by name.
    """

    registers: int
    spill_bytes: int
    spill_instructions: int
    shared_bytes: int
    occupancy: float
    load_bytes: int
    asynchronous: bool
    mma: dict[str, int]


def figures(variant: Variant, arch: int) -> Figures:
    """Compile `variant` for compute capability `arch` and read the machine code."""
    compiled = compile_variant(variant, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "--print-code", "--print-line-info", file.name)
    taken = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    loads = _table_loads(variant, code) if variant.table else []
    shared = int(compiled.metadata.shared)
    return Figures(
        registers=taken["REG"],
        spill_bytes=taken["STACK"] + taken["LOCAL"],
        spill_instructions=len(_SPILL.findall(code)),
        shared_bytes=shared,
        occupancy=occupancy(arch, registers=taken["REG"], shared_bytes=shared, warps=variant.options["num_warps"]),
        load_bytes=min((width for _, width in loads), default=0),
        asynchronous=bool(loads) and all(asynchronous for asynchronous, _ in loads),
        mma=dict(Counter(_MMA.findall(code))),
    )


def _table_loads(variant: Variant, code: str) -> list[tuple[bool, int]]:
    """Return, for each load that the line of the table's `tl.load` became, whether it is asynchronous and its bytes."""
    module = inspect.getmodule(variant.kernel.fn)
    assert module is not None and module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    lines = {at for at, text in enumerate(source, 1) if text.strip().startswith(f"{variant.table} = tl.load(")}
    assert lines, f"no line of {module.__file__} loads {variant.table}"
    found, inside = [], False
    for text in code.splitlines():
        if mark := _LINE.search(text):
            inside = Path(mark[1]).name == Path(module.__file__).name and int(mark[2]) in lines
        elif inside and (load := _LOAD.search(text)):
            found.append(("LDGSTS" in load[0], _bytes(load[1])))
    return found


def _bytes(suffixes: str) -> int:
    """Return the width of a load by its suffixes: `.E.BYPASS.128` is 16 bytes, none is 4."""
    widths = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[suffix] for suffix in suffixes.split(".") if suffix in widths), 4)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout
