"""What a load is, and what came of it; both sides of the generator speak of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """One block of load on one server; closed loop with a `concurrency`, open loop with a `rate`.

    Attributes:
        protocol: `grpc` or `http`.
        port: On loopback.
        bodies: File of the calls' bytes.
        server_pid: Process whose tree is counted as the server's.
        seconds: How long calls are sent and counted.
        concurrency: Callers who each wait for their answer before they send again; None for an open loop.
        rate: Calls a second, at the moments of a Poisson process; None for a closed loop.
        warm_s: Seconds before that which are not counted.
        timeout_s: A call without an answer by then has failed.
        seed: Of the moments, and of the call that comes first.
    """

    protocol: str
    port: int
    bodies: str
    server_pid: int
    seconds: float
    concurrency: int | None = None
    rate: float | None = None
    warm_s: float = 0.5
    timeout_s: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in ("grpc", "http"):
            raise ValueError(f"protocol came as {self.protocol!r}, expected grpc or http")
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError(f"concurrency {self.concurrency} and rate {self.rate} came, expected one of them")
        if (self.concurrency or self.rate or 0) <= 0 or self.seconds <= 0:
            raise ValueError(f"{self} came, expected more than 0 calls and seconds")


@dataclass(frozen=True)
class Outcome:
    """What came of a load; latencies of an open loop count from when a call should have been sent.

    Attributes:
        answered: Calls of the block that were.
        errors: Calls that were not, by what happened.
        seconds: From the end of the warm-up to the last answer.
        qps: Answers a second in that time.
        p50_ms: Median latency, NaN where nothing was answered; `p90_ms`, `p99_ms` and `max_ms` likewise.
        lag_p99_ms: How late the generator itself sent calls; beyond what it says of the server is noise.
        generator_cores: Cores that the generator kept busy.
        server_cores: Cores that the server and its processes kept busy.
    """

    answered: int
    errors: dict[str, int]
    seconds: float
    qps: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    lag_p99_ms: float
    generator_cores: float
    server_cores: float
