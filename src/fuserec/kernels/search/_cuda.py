"""Runs GPU searches: keeps buffers and graphs by shape, copies once in and once out, and repairs what is not proven.

Imported by the first search that asks for it, as it brings torch and triton.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from triton.runtime.interpreter import InterpretedFunction

from fuserec.errors import DeviceError, DeviceLost, DeviceMemoryError, DeviceUnavailable
from fuserec.kernels._arrays import Array, BoolArray, DoubleArray, FloatArray, IntArray
from fuserec.kernels.search import _kernel
from fuserec.kernels.search._cuda_body import Body, Source, as_flags, body_bytes
from fuserec.kernels.search._cuda_request import Request, fill_from_host, fill_on_device
from fuserec.kernels.search._cuda_table import DeviceTable
from fuserec.kernels.search.gpu_bucket import Bucket, GpuSettings, choose_bucket
from fuserec.kernels.search.gpu_config import DEFAULT_ARCH

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HostAnswer:
    """What comes back of B queries: arrays of B rows.

    Attributes:
        ids: (B, k) int64 item ids, -1 in the tail.
        scores: (B, k) float32, -inf there.
        magnitudes: (B,) float64 sums of |q|; see `op.check_magnitudes`.
        certified: (B,) bool: the first pass proved the answer.
        rescored: (B,) int64: rows scored in float.
    """

    ids: IntArray
    scores: FloatArray
    magnitudes: DoubleArray
    certified: BoolArray
    rescored: IntArray


class _Kept:
    """A body with the graph of its launches, and the event after its last use."""

    def __init__(self, body: Body, *, is_reused: bool) -> None:
        self.body, self.is_reused = body, is_reused
        self.graph: torch.cuda.CUDAGraph | None = None
        self.event: torch.cuda.Event | None = None
        self.uses = 0


class Searcher:
    """Searches one table on one device. One search runs at a time; other threads wait for it.

    Args:
        table: What is searched.
        settings: How much memory may be used for it.
        source: What requests look up; the requests come with it too.
    """

    def __init__(self, table: DeviceTable, settings: GpuSettings, source: Source | None = None) -> None:
        self.table, self.settings, self.source = table, settings, source or Source()
        self._arch = _arch(table.device)
        self._kept: OrderedDict[tuple[Bucket, bool], _Kept] = OrderedDict()
        self._fitting: set[Bucket] = set()  # of those that are not padded there may be any number, so none is noted
        self._lock = threading.Lock()
        self._process, self._is_lost = os.getpid(), False
        self._captures = settings.graphs > 0 and table.device.type == "cuda"

    def search(self, request: Request, k: int) -> HostAnswer:
        """Answer queries from the host; k is at least 1 and may exceed N.

        Raises:
            DeviceMemoryError: The buffers do not fit the device.
            DeviceLost: It failed.
            DeviceError: This process is a fork of the one that has the device.
        """
        answers = [self._repaired(part, k) for part in self._parts(request, k, exhaustive=False)]
        if len(answers) == 1:
            return answers[0]
        columns = ("ids", "scores", "magnitudes", "certified", "rescored")
        return HostAnswer(*(np.concatenate([getattr(answer, name) for answer in answers]) for name in columns))

    def search_on_device(self, request: Request, k: int, *, exhaustive: bool = False) -> dict[str, torch.Tensor]:
        """Answer queries on the device, in line on the current stream; nothing waits.

        Returns:
            Tensors of B rows, named as in `gpu_bucket.output_sections`; new ones.
        """
        found = [
            self._enqueue(part, k, exhaustive=exhaustive) for part in self._parts(request, k, exhaustive=exhaustive)
        ]
        if len(found) == 1:
            return found[0]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _parts(self, request: Request, k: int, *, exhaustive: bool) -> Iterator[Request]:
        """Cut a batch so that the buffers of each part fit `candidate_bytes`, as far as one query does."""
        size = request.batch
        while size > 1 and not self._fits(replace(request, batch=size), k, exhaustive):
            size = -(-size // 2)
        if size == request.batch:
            yield request
            return
        for start in range(0, request.batch, size):
            yield request.take(np.arange(start, min(start + size, request.batch)))

    def _fits(self, request: Request, k: int, exhaustive: bool) -> bool:
        exact = request.bucket(k)
        bucket = self._bucket(replace(exact, masks=exact.batch) if exact.masks > 1 else exact, exhaustive)
        if bucket not in self._fitting:
            needed = body_bytes(self.table, bucket, request.source, self._arch, exhaustive=exhaustive)
            if needed > self.settings.candidate_bytes:
                return False
            if bucket.is_captured:
                self._fitting.add(bucket)
        return True

    def _bucket(self, exact: Bucket, exhaustive: bool) -> Bucket:
        """Return the bucket of a search; one that scans in float is not padded, as it would scan for nobody."""
        is_known_source = not exact.is_resident or self.source.table is not None
        if exhaustive or self.table.codes is None or not is_known_source:
            return exact
        return choose_bucket(exact)

    def _repaired(self, request: Request, k: int) -> HostAnswer:
        """Answer a part; what no bound tells apart, or the sample misled on, by the scan that needs neither."""
        found, sound = self._ask(request, k, exhaustive=False)
        left = np.flatnonzero(~found.certified & sound)
        if left.size:
            at = 0
            for part in self._parts(request.take(left), k, exhaustive=True):
                scanned, _ = self._ask(part, k, exhaustive=True)
                here = left[at : at + part.batch]
                found.ids[here], found.scores[here] = scanned.ids, scanned.scores
                found.rescored[here] = scanned.rescored
                at += part.batch
        return found

    def _ask(self, request: Request, k: int, *, exhaustive: bool) -> tuple[HostAnswer, BoolArray]:
        with self._running():
            kept = self._body(request, k, exhaustive=exhaustive, is_staged=True)
            body = kept.body
            self._begin(kept)
            body.inputs.to_device(fill_from_host(body.inputs, request, k))
            self._launch(kept)
            body.outputs.to_host()
            self._end(kept)
            if kept.event is not None:
                kept.event.synchronize()
            out: dict[str, Array] = {name: array[: request.batch] for name, array in body.outputs.arrays.items()}
            proven, sound = as_flags(out["flags"])
            ids, scores = out["found_ids"][:, :k].copy(), out["scores"][:, :k].copy()
            return HostAnswer(ids, scores, out["magnitudes"].copy(), proven, out["rescored"].astype(np.int64)), sound

    def _enqueue(self, request: Request, k: int, *, exhaustive: bool) -> dict[str, torch.Tensor]:
        with self._running():
            kept = self._body(request, k, exhaustive=exhaustive, is_staged=False)
            self._begin(kept)
            fill_on_device(kept.body.inputs, request, k)
            self._launch(kept)
            found = {name: tensor[: request.batch] for name, tensor in kept.body.outputs.tensors.items()}
            for name in ("found_ids", "scores"):
                found[name] = found[name][:, :k]
            found = {name: tensor.clone() for name, tensor in found.items()}
            self._end(kept)
            return found

    def _body(self, request: Request, k: int, *, exhaustive: bool, is_staged: bool) -> _Kept:
        """Return the body for a request: one that is kept, where it is of a bucket."""
        bucket = self._bucket(request.bucket(k), exhaustive)
        found = self._kept.get((bucket, is_staged))
        if found is not None:
            self._kept.move_to_end((bucket, is_staged))
            return found
        body = Body(self.table, bucket, request.source, self._arch, is_staged=is_staged, exhaustive=exhaustive)
        kept = _Kept(body, is_reused=bucket.is_captured and self.settings.graphs > 0)
        if kept.is_reused:
            self._kept[bucket, is_staged] = kept
            while len(self._kept) > self.settings.graphs or (
                len(self._kept) > 1 and sum(one.body.nbytes for one in self._kept.values()) > self.settings.kept_bytes
            ):
                _, old = self._kept.popitem(last=False)
                if old.event is not None:
                    old.event.synchronize()  # another stream may still read its buffers
        return kept

    def _begin(self, kept: _Kept) -> None:
        """Wait, on the current stream, for the last use of the buffers, which may have been on another one."""
        if kept.event is not None:
            torch.cuda.current_stream(self.table.device).wait_event(kept.event)

    def _end(self, kept: _Kept) -> None:
        if self.table.device.type == "cuda":
            kept.event = kept.event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            kept.event.record(torch.cuda.current_stream(self.table.device))

    def _launch(self, kept: _Kept) -> None:
        """Launch the first search of a bucket, which compiles; capture the second; replay from then on."""
        kept.uses += 1
        if not (self._captures and kept.is_reused) or kept.uses == 1:
            # The interpreter computes with numpy; a query that overflows is refused by its magnitude.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                kept.body.launch()
            return
        if kept.graph is None:
            kept.graph = self._capture(kept.body)
        if kept.graph is None:
            kept.body.launch()
        else:
            kept.graph.replay()

    def _capture(self, body: Body) -> torch.cuda.CUDAGraph | None:
        """Return the graph of the launches. They allocate nothing, so the graph has no memory pool to be kept."""
        stream = torch.cuda.Stream(self.table.device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self.table.device))
        with torch.cuda.stream(stream):
            # Other threads may go on to allocate meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                body.launch()
            except Exception:
                self._captures = False
                _log.warning("a search could not be captured as a CUDA graph; searches go on without", exc_info=True)
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                return None
            graph.capture_end()
        torch.cuda.current_stream(self.table.device).wait_stream(stream)
        return graph

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Hold the device, and say of its faults what they are."""
        if os.getpid() != self._process:
            raise DeviceError(
                f"got a search in process {os.getpid()}, a fork of {self._process} that has the index on "
                f"{self.table.device}; a fork cannot use CUDA: start processes by 'spawn' and load the index there"
            )
        with self._lock:
            if self._is_lost:
                raise DeviceLost(f"{self.table.device}: it failed in an earlier search; only a new process can use it")
            device = self.table.device
            try:
                with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                    yield
            except torch.cuda.OutOfMemoryError as error:
                for kept in self._kept.values():
                    if kept.event is not None:
                        kept.event.synchronize()
                self._kept.clear()
                raise DeviceMemoryError(
                    f"{device}: the buffers of a search do not fit: {error}; a smaller batch, a smaller "
                    'candidate_bytes, or rows="host" takes less',
                    needed_bytes=self.settings.candidate_bytes,
                    free_bytes=torch.cuda.mem_get_info(device)[0],
                    fitting_rows=0,
                ) from error
            except RuntimeError as error:
                if not _is_cuda_fault(error):
                    raise
                self._is_lost = True
                raise DeviceLost(f"{device}: it failed in the middle of a search: {error}") from error


def _is_cuda_fault(error: RuntimeError) -> bool:
    """Return whether the driver reported a fault, after which nothing else of this process runs on the device."""
    accelerator_error = getattr(torch, "AcceleratorError", None)
    is_typed = accelerator_error is not None and isinstance(error, accelerator_error)
    return is_typed or "CUDA error" in str(error) or "Triton Error [CUDA]" in str(error)


def _arch(device: torch.device) -> int:
    """Return the compute capability of `device`, 80 for 8.0."""
    if device.type == "cpu":
        return DEFAULT_ARCH
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def open_device(name: str) -> torch.device:
    """Return the device of a name: "cuda", "cuda:N", or "interpret" for the CPU under Triton's interpreter.

    Raises:
        DeviceUnavailable: There is no such device, or the kernels are (or are not) interpreted against what was asked.
        DeviceError: This process is a fork of one that uses CUDA.
    """
    kernel: object = _kernel.block_best_kernel
    interpreted = isinstance(kernel, InterpretedFunction)
    if name == "interpret":
        if not interpreted:
            raise DeviceUnavailable(
                "backend 'interpret': the kernels are compiled; set TRITON_INTERPRET=1 before triton is imported"
            )
        return torch.device("cpu")
    if torch.cuda._is_in_bad_fork():
        raise DeviceError(
            f"backend 'cuda': got process {os.getpid()}, a fork of one that uses CUDA, which cannot use it; start "
            "processes by 'spawn'"
        )
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            "backend 'cuda': got no CUDA device that torch can see, expected one; backend 'cpu' needs none"
        )
    if interpreted:
        raise DeviceUnavailable("backend 'cuda': got interpreted kernels, expected TRITON_INTERPRET to be unset")
    number = str(torch.cuda.current_device()) if name == "cuda" else name.removeprefix("cuda:")
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise DeviceUnavailable(f"invalid device={name!r}: must be cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return torch.device("cuda", int(number))
