"""What a server tells of itself beside its metrics: logs and traces."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fuserec.errors import UsageError
from fuserec.serve.logs import FORMATS, TEXT

# How the launcher tells the processes of the models, which it does not start itself.
_FORMAT_VARIABLE: Final = "FUSEREC_LOG_FORMAT"
_SLOW_VARIABLE: Final = "FUSEREC_SLOW_MS"


@dataclass(frozen=True)
class Observing:
    """How a server is observed.

    Attributes:
        log_format: Of the models' and the launcher's lines, `text` or `json`; the server's own stay as they are.
        slow_ms: Executions that take longer are logged, with the trace ids of their requests.
        otlp: URL of an OpenTelemetry collector (OTLP over HTTP), such as `http://host:4318/v1/traces`; None for none.
        trace_rate: Of the requests without a `traceparent` one of so many is traced; those with one all are, whatever
            its flags say (server 2.51).

    Raises:
        UsageError: One of them is something else.
    """

    log_format: str = TEXT
    slow_ms: float = 500.0
    otlp: str | None = None
    trace_rate: int = 1

    def __post_init__(self) -> None:
        if self.log_format not in FORMATS:
            raise UsageError(f"the log format came as {self.log_format!r}, expected {' or '.join(FORMATS)}")
        if not math.isfinite(self.slow_ms) or self.slow_ms <= 0:
            raise UsageError(f"slow_ms came as {self.slow_ms}, expected a positive number")
        if self.trace_rate < 1:
            raise UsageError(f"the trace rate came as {self.trace_rate}, expected 1 or more: one request of so many")
        if self.otlp is not None:
            parts = urlsplit(self.otlp)
            # A comma would end the option of the server that the URL is part of.
            if parts.scheme not in ("http", "https") or not parts.netloc or "," in self.otlp:
                raise UsageError(f"--otlp came as {self.otlp!r}, expected a URL such as http://host:4318/v1/traces")

    @property
    def options(self) -> list[str]:
        """Command line options of the server."""
        # With them the models know the trace of a request, also where no collector listens.
        options = [f"--{protocol}-header-forward-pattern=(?i)traceparent" for protocol in ("grpc", "http")]
        if self.otlp is None:
            return options
        return [
            *options,
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            f"--trace-config=rate={self.trace_rate}",
            f"--trace-config=opentelemetry,url={self.otlp}",
            "--trace-config=opentelemetry,resource=service.name=fuserec",
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the processes of the models know."""
        return {_FORMAT_VARIABLE: self.log_format, _SLOW_VARIABLE: str(self.slow_ms)}

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Observing:
        """Return what `environment` said; the defaults where a server was started without the launcher."""
        default = cls()
        slow = variables.get(_SLOW_VARIABLE, "")
        try:
            slow_ms = float(slow) if slow else default.slow_ms
        except ValueError:
            raise UsageError(f"{_SLOW_VARIABLE} came as {slow!r}, expected a number") from None
        return cls(log_format=variables.get(_FORMAT_VARIABLE, default.log_format), slow_ms=slow_ms)
