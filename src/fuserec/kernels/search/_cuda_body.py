"""One search of fixed shape: its buffers, and its launches in order, without a wait between them.

The same launches run on a device, there inside the capture of a CUDA graph, and on the CPU under the interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import triton

from fuserec.kernels._arrays import Array
from fuserec.kernels.search import _kernel_finish, _kernel_prepare, _kernel_sift
from fuserec.kernels.search import launch_options as options
from fuserec.kernels.search._cuda_scan import Filters, scan, scan_bytes
from fuserec.kernels.search._cuda_table import DeviceTable
from fuserec.kernels.search.gpu_bucket import (
    Bucket,
    Section,
    input_sections,
    output_sections,
    scratch_sections,
    total_bytes,
)
from fuserec.kernels.search.gpu_config import (
    ALIGNMENT,
    PLACED,
    POOL_QUERIES,
    RESCORE_ROWS,
    GpuConfig,
    Shape,
    SiftPlan,
    choose_config,
    choose_plan,
    programs_a_query,
    query_levels,
    tiles_a_program,
)
from fuserec.kernels.search.keys import EMPTY

Flags = TypeVar("Flags", Array, torch.Tensor)

# Room for rows that a query excludes and that pass the floor; the few queries with more are answered by the other scan.
_MOST_ROOM_FOR_EXCLUDED = 1024


@dataclass(frozen=True, eq=False)
class Source:
    """What lies on the device for many searches: vectors to look up, and lists of rows that queries exclude.

    Attributes:
        table: (V, D) float32, contiguous; None where vectors come with each search.
        seen_offsets: (U + 1,) int64; None for no lists.
        seen_rows: (S,) int64, ascending within a list.
        longest: Rows of the longest list.
    """

    table: torch.Tensor | None = None
    seen_offsets: torch.Tensor | None = None
    seen_rows: torch.Tensor | None = None
    longest: int = 0


class Block:
    """Arrays in one block of memory, so that one copy moves them all.

    Args:
        sections: What is in it.
        device: Where it is. Beside one on a CUDA device there is the same in pinned host memory; on the CPU they are
            one and the same.
        is_staged: Whether there is anything beside.
    """

    def __init__(self, sections: dict[str, Section], device: torch.device, *, is_staged: bool) -> None:
        size = total_bytes(sections)
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self._host = self._device
        if is_staged and device.type == "cuda":
            self._host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._spans = {name: (section.start, section.row_bytes) for name, section in sections.items()}
        self.tensors = {name: _view(self._device, section) for name, section in sections.items()}
        self.nbytes = size
        self.arrays: dict[str, Array] = {}
        if is_staged:
            self.arrays = {name: _view(self._host, section).numpy() for name, section in sections.items()}

    def to_device(self, used: int) -> None:
        """Copy the first `used` bytes to the device; the copy is in line on the current stream."""
        if self._host is not self._device:
            self._device[:used].copy_(self._host[:used], non_blocking=True)

    def to_host(self) -> None:
        """Copy everything to the host, as above."""
        if self._host is not self._device:
            self._host.copy_(self._device, non_blocking=True)

    def stop_of(self, name: str, rows: int) -> int:
        """Return where the first `rows` rows of an array end."""
        start, row_bytes = self._spans[name]
        return start + rows * row_bytes


def _view(block: torch.Tensor, section: Section) -> torch.Tensor:
    dtype = getattr(torch, section.dtype)
    return block[section.start : section.stop].view(dtype).view(section.shape)


def plan_of(table: DeviceTable, bucket: Bucket, source: Source, arch: int) -> tuple[GpuConfig, SiftPlan]:
    """Return tiles and sample of a search of `bucket`."""
    excluded = min(bucket.longest + source.longest, _MOST_ROOM_FOR_EXCLUDED)
    shape = Shape(bucket.batch, table.rows, table.dim, min(bucket.k, table.rows), excluded)
    config = choose_config(shape, table.dtype, arch)
    return config, choose_plan(shape, config)


def body_bytes(table: DeviceTable, bucket: Bucket, source: Source, arch: int, *, exhaustive: bool) -> int:
    """Return what the buffers of a search of `bucket` take on the device."""
    staged = total_bytes(input_sections(bucket, table.rows, table.dim)) + total_bytes(output_sections(bucket))
    if exhaustive or table.codes is None:
        staged += scan_bytes(table, bucket.batch, min(bucket.k, table.rows))
    return staged + total_bytes(_scratch(table, bucket, source, arch, exhaustive=exhaustive))


def _scratch(table: DeviceTable, bucket: Bucket, source: Source, arch: int, *, exhaustive: bool) -> dict[str, Section]:
    width = -(-table.dim // ALIGNMENT) * ALIGNMENT
    config, plan = plan_of(table, bucket, source, arch)
    if exhaustive or config.method != "sift":
        return scratch_sections(bucket, width, 1, 1)
    return scratch_sections(bucket, width, _n_orders(table, config, plan), plan.capacity)


def _n_orders(table: DeviceTable, config: GpuConfig, plan: SiftPlan) -> int:
    if not plan.tile_stride:
        return 1
    tiles = triton.cdiv(table.rows, config.block_n)
    return int(triton.cdiv(tiles, plan.tile_stride) * (config.block_n // config.block_best))


class Body:
    """The buffers and launches of the searches of one bucket.

    Args:
        table: What is searched.
        bucket: The shape.
        source: What lies on the device besides.
        arch: Compute capability, 80 for 8.0.
        is_staged: Whether queries come from the host and answers go there.
        exhaustive: Score every row in float: what codes do not prove. So do all searches of a table without codes.

    Attributes:
        inputs: What `gpu_bucket.input_sections` names; to be filled before `launch`.
        outputs: What `output_sections` names; rows of queries that were not asked are not written.
        nbytes: What the buffers take on the device.
    """

    def __init__(
        self,
        table: DeviceTable,
        bucket: Bucket,
        source: Source,
        arch: int,
        *,
        is_staged: bool,
        exhaustive: bool = False,
    ) -> None:
        device = table.device
        self.inputs = Block(input_sections(bucket, table.rows, table.dim), device, is_staged=is_staged)
        self.outputs = Block(output_sections(bucket), device, is_staged=is_staged)
        scratch = Block(_scratch(table, bucket, source, arch, exhaustive=exhaustive), device, is_staged=False)
        self.nbytes = self.inputs.nbytes + self.outputs.nbytes + scratch.nbytes
        self._table, self._bucket, self._source = table, bucket, source
        self._config, self._plan = plan_of(table, bucket, source, arch)
        if exhaustive and self._config.method == "sift":
            shape = Shape(bucket.batch, table.rows, table.dim, min(bucket.k, table.rows))
            self._config = choose_config(shape, table.row_dtype, arch)
        self._scratch = scratch.tensors
        # Arguments that a variant of a kernel does not read; triton takes no empty tensors.
        nothing = {name: torch.zeros(1, dtype=torch.int64, device=device) for name in ("ids", "bags", "lists")}
        nothing["weights"] = torch.zeros(1, dtype=torch.float32, device=device)
        nothing["allow"] = torch.zeros(1, dtype=torch.uint8, device=device)
        nothing["out_offsets"] = nothing["out_rows"] = nothing["ids"]
        self._in = nothing | self.inputs.tensors
        if source.table is not None:
            self._in["table"] = source.table
        has_lists = source.seen_offsets is not None and source.seen_rows is not None
        seen = (source.seen_offsets, source.seen_rows) if has_lists else (nothing["ids"], nothing["ids"])
        excluded = (self._in["out_offsets"], self._in["out_rows"])
        self._filters = Filters(
            lists=(*excluded, *seen, self._in["lists"]),  # type: ignore[arg-type]
            allow=self._in["allow"],
            list_flags={"EXCLUDE": bucket.longest > 0, "SEEN": has_lists},
            steps=(bucket.longest.bit_length(), source.longest.bit_length()),
            allowed={"ALLOW": bucket.masks > 0},
            stride_allow=table.rows if bucket.masks > 1 else 0,
        )

    def launch(self) -> None:
        """Launch the search on the current stream."""
        self._prepare()
        if self._config.method == "sift":
            self._sift()
            self._prune_and_rescore()
            self._place(self._scratch["picked"], self._plan.capacity)
        else:
            self._scan()

    def _scan(self) -> None:
        batch, k = self._bucket.batch, min(self._bucket.k, self._table.rows)
        keys = scan(self._table, self._scratch["queries"], batch, self._filters, k, self._config)
        torch.sum(keys != EMPTY, 1, dtype=torch.int32, out=self._scratch["n_picked"])
        self._place(keys, k)
        self.outputs.tensors["flags"].bitwise_or_(int(_kernel_finish.PROVEN.value))
        self.outputs.tensors["rescored"].fill_(self._table.rows)

    def _prepare(self) -> None:
        table, inputs, scratch = self._table, self._in, self._scratch
        bucket, width = self._bucket, scratch["queries"].shape[1]
        _kernel_prepare.prepare_kernel[(triton.cdiv(bucket.batch, POOL_QUERIES),)](
            scratch["queries"], scratch["largests"], scratch["lengths"], self.outputs.tensors["magnitudes"],
            scratch["floors"], scratch["counts"],
            inputs["sizes"], inputs["table"], inputs["ids"], inputs["bags"], inputs["weights"], table.dim, width,
            KIND=bucket.kind, WEIGHTED=bucket.weighted, NORMALIZE=table.normalize, **options.prepare_options(),
        )  # fmt: skip

    def _sift(self) -> None:
        stride = self._plan.tile_stride
        tiles = triton.cdiv(self._table.rows, self._config.block_n)
        if stride:
            self._launch_sift(triton.cdiv(tiles, stride), stride, sample=True)
            _kernel_finish.floor_kernel[(self._bucket.batch,)](
                self._scratch["floors"], self._in["sizes"], self._scratch["sampled"],
                self._scratch["sampled"].shape[1], self._plan.rank, **options.count_options(),
            )  # fmt: skip
        self._launch_sift(tiles, 1, sample=False)

    def _launch_sift(self, tiles: int, tile_stride: int, *, sample: bool) -> None:
        table, scratch, filters, batch = self._table, self._scratch, self._filters, self._bucket.batch
        codes = table.codes
        assert codes is not None
        query_tiles = triton.cdiv(batch, self._config.block_q)
        each = tiles_a_program(tiles, query_tiles)
        _kernel_sift.sift_kernel[(triton.cdiv(tiles, each) * query_tiles,)](
            scratch["sampled"], scratch["keys"], scratch["counts"],
            self._in["sizes"], scratch["queries"], scratch["largests"], scratch["lengths"], scratch["floors"],
            codes.values, codes.scales, codes.reaches, *filters.lists, filters.allow,
            batch, table.rows, *filters.steps, tiles, each, tile_stride, query_levels(table.dim),
            self._plan.capacity, codes.values.stride(0), filters.stride_allow,
            **filters.list_flags, **filters.allowed,
            **options.sift_options(self._config, codes.values.stride(0), sample=sample),
        )  # fmt: skip

    def _prune_and_rescore(self) -> None:
        table, scratch, filters = self._table, self._scratch, self._filters
        capacity, batch, sizes = self._plan.capacity, self._bucket.batch, self._in["sizes"]
        assert table.codes is not None
        _kernel_finish.prune_kernel[(batch,)](
            scratch["picked"], scratch["n_picked"], scratch["orders"], sizes, scratch["keys"], scratch["counts"],
            scratch["lengths"], table.codes.reaches, *filters.lists, capacity, *filters.steps,
            **filters.list_flags, **options.count_options(),
        )  # fmt: skip
        parts = programs_a_query(batch, triton.cdiv(capacity, RESCORE_ROWS))
        queries = scratch["queries"]
        _kernel_finish.rescore_kernel[(batch * parts,)](
            scratch["picked"], sizes, scratch["n_picked"], table.items, queries,
            capacity, parts, table.items.stride(0), queries.stride(0), **options.rescore_options(table.dim),
        )  # fmt: skip

    def _place(self, keys: torch.Tensor, capacity: int) -> None:
        scratch, outputs, bucket = self._scratch, self.outputs.tensors, self._bucket
        parts = programs_a_query(bucket.batch, triton.cdiv(max(capacity, bucket.k), PLACED))
        _kernel_finish.place_kernel[(bucket.batch * parts,)](
            outputs["found_ids"], outputs["scores"], outputs["flags"], outputs["rescored"],
            self._in["sizes"], keys, scratch["n_picked"], scratch["counts"], scratch["floors"],
            outputs["magnitudes"], self._table.limits, self._table.item_ids,
            capacity, parts, bucket.k, **options.place_options(),
        )  # fmt: skip


def as_flags(flags: Flags) -> tuple[Flags, Flags]:
    """Return which queries are proven, and which have sound scores: two arrays or tensors of bool."""
    proven, sound = int(_kernel_finish.PROVEN.value), int(_kernel_finish.SOUND.value)
    return (flags & proven) != 0, (flags & sound) != 0
