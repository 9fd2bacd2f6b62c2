"""How many warps of a kernel a multiprocessor holds at once: arithmetic on what it takes and what there is.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 64 * 1024
_REGISTER_UNIT = 256  # a warp is given registers in units of so many
_WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor: warps, blocks, shared memory, and what each block takes of it besides."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int


MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 << 10, 0),
    80: Multiprocessor(64, 32, 164 << 10, 1 << 10),
    86: Multiprocessor(48, 16, 100 << 10, 1 << 10),
    89: Multiprocessor(48, 24, 100 << 10, 1 << 10),
    90: Multiprocessor(64, 32, 228 << 10, 1 << 10),
    100: Multiprocessor(64, 32, 228 << 10, 1 << 10),
    120: Multiprocessor(48, 24, 100 << 10, 1 << 10),
}


def occupancy(arch: int, *, registers: int, shared_bytes: int, warps: int) -> float:
    """Return the share of a multiprocessor's warps that can be resident; 0 if not even one block fits.

    Args:
        arch: Compute capability, 80 for 8.0.
        registers: Registers a thread.
        shared_bytes: Shared memory a block, without what the system reserves.
        warps: Warps a block.
    """
    limit = MULTIPROCESSORS[arch]
    registers_a_warp = -(-registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    shared = shared_bytes + limit.reserved_bytes
    blocks = min(
        limit.blocks,
        limit.warps // warps,
        _REGISTERS // registers_a_warp // warps,
        limit.shared_bytes // shared if shared else limit.blocks,
    )
    return blocks * warps / limit.warps
