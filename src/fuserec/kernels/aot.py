"""Compiles the GPU kernels ahead of time, for devices that are not here, with what a real launch tells the compiler.

A launch says which pointers and sizes are multiples of 16; so do the sources below, or the loads would come out
narrower. Tiles and flags come from where the launcher takes them (`choose_config`, `launch_options`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fuserec.kernels.search import _kernel, _kernel_finish, _kernel_prepare, _kernel_sift
from fuserec.kernels.search import launch_options as options
from fuserec.kernels.search.gpu_config import DEFAULT_ARCH, Dtype, Shape, choose_config

COMPUTE_CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
DIMS = (64, 128, 256, 1024)
BATCHES = (1, 32, 64)

_FLOATS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
_TYPES = {
    "sizes_ptr": "*i64",
    "best_ptr": "*i64",
    "magnitudes_ptr": "*fp64",
    "limits_ptr": "*fp64",
    "keys_ptr": "*i64",
    "counts_ptr": "*i32",
    "orders_ptr": "*i32",
    "floors_ptr": "*fp32",
    "queries_ptr": "*fp32",
    "largests_ptr": "*fp32",
    "lengths_ptr": "*fp32",
    "codes_ptr": "*i8",
    "scales_ptr": "*fp32",
    "reaches_ptr": "*fp32",
    "picked_ptr": "*i64",
    "n_picked_ptr": "*i32",
    "found_ids_ptr": "*i64",
    "scores_ptr": "*fp32",
    "flags_ptr": "*i32",
    "rescored_ptr": "*i32",
    "item_ids_ptr": "*i64",
    "table_ptr": "*fp32",
    "ids_ptr": "*i64",
    "bags_ptr": "*i64",
    "weights_ptr": "*fp32",
    "out_offsets_ptr": "*i64",
    "out_rows_ptr": "*i64",
    "seen_offsets_ptr": "*i64",
    "seen_rows_ptr": "*i64",
    "lists_ptr": "*i64",
    "allow_ptr": "*u8",
}
# The number of rows, and with it the stride of a mask, is any number; these are multiples by construction.
_MULTIPLES_OF_16 = ("stride_items", "stride_codes", "stride_queries")
# Every feature at once is what takes the most registers; the plain one is what most searches launch.
_LISTED = {"EXCLUDE": True, "SEEN": True}
_FILTERED = _LISTED | {"ALLOW": True}
_PLAIN = {"EXCLUDE": False, "SEEN": False, "ALLOW": False}
_KINDS: dict[str, options.Options] = {
    "bag": {"KIND": "bag", "WEIGHTED": True, "NORMALIZE": True},
    "lookup": {"KIND": "lookup", "WEIGHTED": False, "NORMALIZE": False},
    "dense": {"KIND": "dense", "WEIGHTED": False, "NORMALIZE": False},
}


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time arguments.

    Attributes:
        name: What it is called in reports.
        kernel: The `@triton.jit` function.
        constexprs: Its compile-time arguments.
        types: Types of the pointers that differ from one variant to the next.
        options: What the compiler is told besides, `num_warps` for one.
        table: Name in the kernel's source of the tile of the table, whose loads are to be 16 bytes a thread; empty if
            it reads none.
        mma: It is to run on tensor cores.
    """

    name: str
    kernel: Any
    constexprs: Mapping[str, object]
    types: dict[str, str]
    options: Mapping[str, int]
    table: str
    mma: bool


def variants(arch: int) -> list[Variant]:
    """Return all that searches launch on a device of compute capability `arch`."""
    found = {variant.name: variant for variant in (*_sifts(arch), *_around(), *_scans(arch))}
    return list(found.values())


def _sifts(arch: int) -> Iterator[Variant]:
    for dim in DIMS:
        for batch in BATCHES:
            config = choose_config(Shape(batch, 1_000_000, dim, 100), "int8", arch)
            for filters, flags in (("filters", _FILTERED), ("plain", _PLAIN)):
                for sample in (True, False):
                    if filters == "plain" and dim != 128:
                        continue  # less of the same
                    name = f"{'sample' if sample else 'sift'}[d={dim}, q={config.block_q}, {filters}]"
                    given = flags | options.sift_options(config, dim, sample=sample)
                    yield _variant(name, _kernel_sift.sift_kernel, given, {}, "codes", config.mma)


def _around() -> Iterator[Variant]:
    for kind, flags in _KINDS.items():
        given = flags | options.prepare_options()
        yield _variant(f"prepare[{kind}]", _kernel_prepare.prepare_kernel, given, {}, "")
    yield _variant("floor", _kernel_finish.floor_kernel, options.count_options(), {}, "")
    yield _variant("prune", _kernel_finish.prune_kernel, _LISTED | options.count_options(), {}, "")
    yield _variant("place", _kernel_finish.place_kernel, options.place_options(), {}, "")
    for dim in DIMS:
        for dtype, pointer in _FLOATS.items():
            given = options.rescore_options(dim)
            name = f"rescore[d={given['BLOCK_D']}, {dtype}]"
            yield _variant(name, _kernel_finish.rescore_kernel, given, {"items_ptr": pointer}, "item")


def _scans(arch: int) -> Iterator[Variant]:
    dtypes: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
    for dtype in dtypes:
        types = {"items_ptr": _FLOATS[dtype]}
        config = choose_config(Shape(1, 1_000_000, 128, 10), dtype, arch)
        given = _FILTERED | options.keep_options(config)
        yield _variant(f"keep[{dtype}]", _kernel.keep_best_kernel, given, types, "item")
        for batch in (1, 16):
            config = choose_config(Shape(batch, 1_000_000, 128, 100), dtype, arch)
            given = _FILTERED | options.block_best_options(config)
            name = f"block_best[q={config.block_q}, {dtype}]"
            # No tensor cores here, whatever the batch: they would round float32 to TF32.
            yield _variant(name, _kernel.block_best_kernel, given, types, "item")
            given = _FILTERED | options.reopen_options(config)
            yield _variant(f"reopen[d={config.block_d}, {dtype}]", _kernel.reopen_kernel, given, types, "item")


def _variant(
    name: str, kernel: Any, given: options.Options, types: dict[str, str], table: str, mma: bool = False
) -> Variant:
    constexprs = {key: value for key, value in given.items() if key in kernel.arg_names}
    rest = {key: value for key, value in given.items() if key not in kernel.arg_names}
    return Variant(name, kernel, constexprs, types, rest, table, mma)


def compile_variant(variant: Variant, arch: int = DEFAULT_ARCH) -> Any:
    """Return what Triton makes of `variant`: `.asm["cubin"]` and `.metadata`; its cache makes a second call cheap.

    Raises:
        RuntimeError: The kernels are interpreted in this process, so there is nothing to compile; or the compiler
            fails.
    """
    if not isinstance(variant.kernel, JITFunction):
        raise RuntimeError("got interpreted kernels, expected TRITON_INTERPRET to be unset when triton was imported")
    names = variant.kernel.arg_names
    types = _TYPES | variant.types
    signature = {
        name: "constexpr" if name in variant.constexprs else types.get(name, "i32")  # what is no pointer is a size
        for name in names
    }
    divisible = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in variant.constexprs.items()},
        attrs={(at,): divisible for at, name in enumerate(names) if name.endswith("_ptr") or name in _MULTIPLES_OF_16},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(variant.options))
