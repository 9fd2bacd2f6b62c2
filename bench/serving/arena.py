"""All contenders over one catalogue, started beside each other and found to give the same answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl

from bench._output import log
from bench.serving import contenders as who
from bench.serving.contenders import Contender, check_same
from bench.serving.generator import Generator
from bench.serving.measure import Plan, closed_loops
from bench.serving.noop import load_noop
from bench.serving.repositories import LARGE, SMALL, large_repository, small_repository
from bench.serving.rival import SETUPS, RivalServer, Setup
from bench.serving.workload import Workload
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig

_TRIAL_CONCURRENCIES: Final = (8, 32)


@dataclass(frozen=True)
class Arena:
    """Where the measuring is done.

    Attributes:
        checkpoint: The trained model, a two-tower or another retriever that needs no text.
        folder: For repositories, calls and logs; the repositories are used again.
        large_items: Items of the large catalogue.
        workload: What is asked.
        settings: How our models run.
    """

    checkpoint: Path
    folder: Path
    large_items: int = 1_000_000
    workload: Workload = Workload()
    settings: ServingConfig = ServingConfig()

    def bundle(self, catalogue: str) -> Path:
        """Return the bundle of a catalogue, `small` or `large`; it is made where it is not there."""
        small = small_repository(self.checkpoint, self.folder / SMALL)
        if catalogue == SMALL:
            return small
        # The number is in the name, so that a quick run does not throw away what took its time.
        return large_repository(small, self.folder / f"{LARGE}-{self.large_items}", self.large_items)

    @contextlib.contextmanager
    def serve(self, bundle: Path) -> Iterator[Server]:
        """Yield the real server over a bundle."""
        with Server(bundle.parents[1], address=Address.free(), settings=self.settings) as server:
            yield server

    @contextlib.contextmanager
    def contenders(
        self, bundle: Path, generator: Generator, rival: Setup | None, plan: Plan
    ) -> Iterator[list[Contender]]:
        """Yield ours over gRPC and HTTP, the no-op model, and the rival: the better of its setups where none is given.

        Raises:
            SystemExit: They do not answer alike.
        """
        calls = self.workload.draw(pl.read_parquet(bundle / "users.parquet"))
        with self.serve(bundle) as server:
            load_noop(server)
            ours = who.ours(server, calls, self.folder, http=True, noop=True)

            def start(setup: Setup) -> RivalServer:
                return RivalServer(self.checkpoint, bundle, setup, self.folder / "rival.log")

            if rival is None:
                tried = {}
                for setup in SETUPS:
                    with start(setup) as running:
                        contender = who.rival(running, calls, self.folder)
                        tried[setup] = _most(generator, contender, plan)
                log("rivals, answers/s: " + ", ".join(f"{setup.name} {qps:.0f}" for setup, qps in tried.items()))
                rival = max(SETUPS, key=lambda setup: tried[setup])
            with start(rival) as running:
                found = [*ours, who.rival(running, calls, self.folder)]
                same = [contender for contender in found if contender.name != who.NO_OP]
                log(f"{check_same(same, calls)} calls are answered alike by " + ", ".join(one.name for one in same))
                yield found


def _most(generator: Generator, contender: Contender, plan: Plan) -> float:
    trial = replace(plan, concurrencies=_TRIAL_CONCURRENCIES, rounds=1)
    return max(float(row["qps"]) for row in closed_loops(generator, [contender], trial, {}))


def describe(catalogue: str, bundle: Path) -> Mapping[str, str | int]:
    """Return the columns that tell the rows of one catalogue from those of the other."""
    from fuserec.manifest import Manifest

    return {"catalogue": catalogue, "items": Manifest.read(bundle).n_items}


def setup_named(name: str) -> Setup | None:
    """Return the setup that is called `2x1`, workers by threads; None for `best`."""
    return next((setup for setup in SETUPS if setup.name.endswith(f" {name}")), None)


SETUP_NAMES: Final[Sequence[str]] = ("best", *(setup.name.split()[1] for setup in SETUPS))
