"""The kinds of processor that code is compiled for: three levels in place of every model that was ever sold.

Numba compiles for the very processor that it runs on, and what it has kept is of no use to the next model. Code for a
level runs on every processor with its features, so that it can be compiled once, where the package is built. The levels
are those that `_numba_tile` has different instructions for; how else an Intel and an AMD differ is worth less than the
40 s that each of them would compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class CpuLevel:
    """A set of instructions.

    Attributes:
        name: As `fuserec compile --target-cpu` has it.
        cpu: LLVM's name of the processor, which also says how instructions are scheduled.
        features: LLVM's names of the features that a processor must have.
    """

    name: str
    cpu: str
    features: frozenset[str]

    @property
    def llvm_features(self) -> str:
        """The features as LLVM takes them."""
        return ",".join(f"+{feature}" for feature in sorted(self.features))


_V3: Final = frozenset(
    ("64bit", "avx", "avx2", "bmi", "bmi2", "cmov", "crc32", "cx16", "cx8", "f16c", "fma", "fxsr", "lzcnt", "mmx",
     "movbe", "popcnt", "sahf", "sse", "sse2", "sse3", "sse4.1", "sse4.2", "ssse3", "xsave")
)  # fmt: skip
_V4: Final = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
AVX2: Final = CpuLevel("avx2", "x86-64-v3", _V3)
VNNI: Final = CpuLevel("vnni", "x86-64-v4", _V4 | {"avx512vnni"})
AMX: Final = CpuLevel("amx", "x86-64-v4", _V4 | {"avx512vnni", "amx-int8", "amx-tile"})
# Best first.
LEVELS: Final = (AMX, VNNI, AVX2)


def level_for(features: frozenset[str]) -> CpuLevel | None:
    """Return the best level that a processor with these features has; None below all of them, and on other machines."""
    return next((level for level in LEVELS if level.features <= features), None)


def level_named(cpu: str | None, llvm_features: str | None) -> CpuLevel | None:
    """Return the level that these settings of LLVM are those of, if any."""
    return next((level for level in LEVELS if (level.cpu, level.llvm_features) == (cpu, llvm_features)), None)
