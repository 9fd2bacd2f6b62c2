"""Where a server computes: decided once at its start, with a reason, and told to the processes of its models."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from fuserec.contract import RECOMMEND, SEARCH
from fuserec.errors import LaunchError, UsageError
from fuserec.kernels.search.gpu_config import state_bytes
from fuserec.manifest import Manifest
from fuserec.serve.probe import Gpu, Survey, look
from fuserec.serve.settings import RowsPlace, ServingConfig

# How the launcher tells the processes of the models, which it does not start itself.
VARIABLE: Final = "FUSEREC_DEVICE"
# What the buffers and graphs of searches may take in each process.
SEARCH_BYTES: Final = 1 << 30
# Beside that and the table: CUDA's context, compiled kernels, vectors of users. An allowance, not measured.
PROCESS_BYTES: Final = (1 << 30) + SEARCH_BYTES

Kind = Literal["cpu", "cuda", "interpret"]


@dataclass(frozen=True)
class Device:
    """What was decided.

    Attributes:
        kind: `cpu` or `cuda`, which is a backend of the search too; `interpret`, for tests, runs the kernels of the
            latter on a CPU.
        reason: Why, for whoever reads the log.
        target: Compute capability of the GPU, `sm90`; None without one.
        rows: Where the vectors lie that are scored exactly; the codes that are scanned always lie on the device.
    """

    kind: Kind
    reason: str
    target: str | None = None
    rows: RowsPlace = "device"

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})"

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which the processes of the models know."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Device:
        """Return what `environment` said; where a server was started without the launcher, what suits this machine.

        Raises:
            UsageError: The variable is something else.
        """
        text = variables.get(VARIABLE)
        if text is None:
            return decide(ServingConfig(), look(), Need())
        try:
            device = cls(**json.loads(text))
        except (ValueError, TypeError):
            device = None
        if device is None or device.kind not in get_args(Kind) or device.rows not in get_args(RowsPlace):
            raise UsageError(f"invalid {VARIABLE}={text!r}: must be what `fuserec serve` sets") from None
        return device


CPU: Final = Device("cpu", "the default of a pipeline in this process")


@dataclass(frozen=True)
class Need:
    """What a search on the device takes.

    Attributes:
        items: Rows of the index, N; 0 where nothing is searched.
        dim: Columns, D.
        processes: That search, each with a table of its own on the device.
        fewest: How many there would be with one of the front door.
    """

    items: int = 0
    dim: int = 0
    processes: int = 1
    fewest: int = 1

    @classmethod
    def of(cls, manifest: Manifest, settings: ServingConfig) -> Need:
        """Return the need of a bundle's models: the front door, and `search` beside it."""
        if manifest.models[0] != RECOMMEND:
            return cls()
        others = settings.stage_instances if SEARCH in manifest.models else 0
        return cls(manifest.n_items, manifest.dim, settings.instances + others, 1 + others)

    def table_bytes(self, rows: RowsPlace) -> int:
        """Return the bytes of one table at most: its rows may be kept in fewer than 32 bits an entry."""
        return state_bytes(self.items, self.dim, rows_on=rows)

    def total_bytes(self, rows: RowsPlace) -> int:
        """Return the bytes of all processes together."""
        return self.processes * (self.table_bytes(rows) + PROCESS_BYTES)


def decide(settings: ServingConfig, survey: Survey, need: Need) -> Device:
    """Decide where to compute.

    Args:
        settings: `device` and `device_rows` say what is wanted.
        survey: The device at hand.
        need: What the search would take there.

    Raises:
        LaunchError: "cuda" is wanted and cannot be; the message says what is missing and what would do.
    """
    rows, gpu = settings.device_rows, survey.gpu
    if settings.device == "cpu":
        return Device("cpu", "as set")
    if gpu is None:
        missing = survey.missing
    elif need.total_bytes(rows) > gpu.free_bytes:
        missing = _too_little(gpu, need, rows)
    else:
        taken = f"{_gib(need.total_bytes(rows))} of {_gib(gpu.free_bytes)} free" if need.items else "for the networks"
        return Device("cuda", f"{gpu.name}, {gpu.target}, {taken}", gpu.target, rows)
    if settings.device == "cuda":
        raise LaunchError(f"invalid device='cuda': must be 'cpu' or 'auto' here, as {missing}")
    return Device("cpu", missing)


def _too_little(gpu: Gpu, need: Need, rows: RowsPlace) -> str:
    """Say how much is needed and what would fit."""
    alone = dataclasses.replace(need, processes=need.fewest)
    choices: list[tuple[str, int]] = [
        ("the rows on the host (--set device_rows=host)", need.total_bytes("host")),
        ("one process of the front door (--set instances=1)", alone.total_bytes(rows)),
        ("both", alone.total_bytes("host")),
    ]
    fitting = [f"{what}: {_gib(size)}" for what, size in choices if size <= gpu.free_bytes]
    room = max(0, gpu.free_bytes // need.processes - PROCESS_BYTES)
    fitting.append(f"{room * need.items // need.table_bytes(rows):,} items as it is")
    return (
        f"{need.processes} processes with {need.items:,} items of {need.dim} each need {_gib(need.total_bytes(rows))}, "
        f"and {gpu.name} has {_gib(gpu.free_bytes)} free of {_gib(gpu.total_bytes)}; what would fit: "
        + ", ".join(fitting)
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
