"""What a server is doing: two scrapes of its metrics port, and what happened between them."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from urllib.parse import urlsplit

from fuserec.client import is_direct
from fuserec.errors import LaunchError, UsageError
from fuserec.serve import telemetry as names

_AB = names.AB_ROWS.name
_MAX_BYTES = 16 * 2**20
_TRITON_FAILURES = ("REJECTED", "BACKEND", "OTHER")  # and CANCELED, by the caller

# Names of proxies are in the environment; curl and the client read it alike.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what reads a URL: through no proxy where the client would go through none."""
    return _DIRECT if is_direct(urlsplit(url).hostname or "") else urllib.request.build_opener()


@dataclass(frozen=True)
class Scrape:
    """Every series of a metrics port at one moment.

    Attributes:
        time_s: When; only differences count.
        series: Value by name and labels.
    """

    time_s: float
    series: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str, time_s: float) -> Scrape:
        """Read Prometheus' text format.

        Raises:
            ValueError: It is something else.
        """
        from prometheus_client.parser import text_string_to_metric_families

        # Without types: the parser renames a counter that does not end in `_total`, and Triton has such.
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        families = text_string_to_metric_families("\n".join(lines) + "\n")
        samples = [sample for family in families for sample in family.samples]
        return cls(time_s, {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})

    @classmethod
    def fetch(cls, url: str, timeout_s: float = 5.0) -> Scrape:
        """Read the metrics port of a server.

        Args:
            url: Such as `http://127.0.0.1:8002`; `/metrics` is added where there is no path.
            timeout_s: For the answer.

        Raises:
            UsageError: The URL is none.
            LaunchError: Nothing answers there, or not with metrics.
        """
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"the metrics port came as {url!r}, expected a URL such as http://127.0.0.1:8002")
        if url.count("/") < 3 or url.endswith("/"):
            url = f"{url.rstrip('/')}/metrics"
        try:
            with _opener(url).open(url, timeout=timeout_s) as response:
                text = response.read(_MAX_BYTES).decode("utf-8")
            return cls.parse(text, monotonic())
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise LaunchError(
                f"{url} does not answer with metrics: {error}; give the metrics port of a server"
            ) from None

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over the series of a name that have some labels; 0 where there is none."""
        wanted = labels.items()
        return sum(value for (known, pairs), value in self.series.items() if known == name and wanted <= pairs)

    def values(self, name: str, label: str) -> list[str]:
        """Return the values of a label of a metric, in order."""
        return sorted({dict(pairs)[label] for known, pairs in self.series if known == name and label in dict(pairs)})


@dataclass(frozen=True)
class ModelView:
    """One version of a model between two scrapes; NaN where nothing happened.

    Attributes:
        model: Its name.
        version: Number of the bundle.
        qps: Requests answered a second.
        rows_per_s: Rows of them.
        p50_ms: Milliseconds of an execution, the queue not counted; half took no longer.
        p99_ms: Likewise of all but one in a hundred.
        queue_ms: Mean time in the queue.
        pending: Requests that wait.
        batch_rows: Mean rows of an execution.
        rejected_per_s: Requests a second that were shed: they waited too long in the queue, or the lane of heavy ones
            was full. What a full queue itself turns away, server 2.51 does not count.
        refused_per_s: Requests a second that asked for the impossible, or for more than a limit.
        expired_per_s: Requests a second whose time was over while they were answered.
        failed_per_s: Requests a second that failed by a fault of the model or its process.
        fallback: Share of the rows that were answered by popularity.
    """

    model: str
    version: str
    qps: float
    rows_per_s: float
    p50_ms: float
    p99_ms: float
    queue_ms: float
    pending: float
    batch_rows: float
    rejected_per_s: float
    refused_per_s: float
    expired_per_s: float
    failed_per_s: float
    fallback: float


@dataclass(frozen=True)
class Shadowed:
    """What a shadow did: rows that it answered too, the mean share of items in common, and milliseconds a row."""

    rows: float
    overlap: float
    ms_per_row: float


@dataclass(frozen=True)
class ShadowView:
    """A shadow between two scrapes: its versions, rows a second, and as in `Shadowed`."""

    version: str
    candidate: str
    rows_per_s: float
    overlap: float
    ms_per_row: float


@dataclass(frozen=True)
class View:
    """A server between two scrapes.

    Attributes:
        seconds: Between them.
        models: Its models and their versions, those with requests or that are loaded.
        shadows: Its shadows, those with rows.
        ab: Share of the rows of an A/B experiment by version; empty where there is none.
        devices: `cpu` and `cuda` to the models that compute there, those that say so.
    """

    seconds: float
    models: list[ModelView]
    shadows: list[ShadowView]
    ab: dict[str, float]
    devices: dict[str, list[str]]


class _Between:
    """Growth of the counters between two scrapes; one that began anew has grown from nothing."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self.seconds = after.time_s - before.time_s
        grown_series = {}
        for series, value in after.series.items():
            grown = value - before.series.get(series, 0.0)
            grown_series[series] = grown if grown >= 0 else value
        self.growth = Scrape(after.time_s, grown_series)

    def grown(self, name: str, **labels: str) -> float:
        return self.growth.total(name, **labels)

    def rate(self, name: str, **labels: str) -> float:
        return self.grown(name, **labels) / self.seconds

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Return upper bounds and what lay at or below them, ascending."""
        found: dict[float, float] = {}
        for (known, pairs), value in self.growth.series.items():
            if known == f"{name}_bucket" and labels.items() <= pairs:
                bound = float(dict(pairs)["le"])
                found[bound] = found.get(bound, 0.0) + value
        return sorted(found.items())


def quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Return the value that a share of what was observed does not exceed, as Prometheus' `histogram_quantile` does.

    Args:
        share: 0 to 1.
        buckets: Upper bounds, ascending up to infinity, and how much lay at or below each. Within a bucket, values are
            taken to be spread evenly; beyond the last finite bound, to be at it.
    """
    if not buckets or buckets[-1][1] <= 0:
        return math.nan
    rank = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, total in buckets:
        if total >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (total - below) if total > below else bound
        low, below = bound, total
    return low


def view(before: Scrape, after: Scrape) -> View:
    """Return what a server did between two scrapes.

    Raises:
        ValueError: They are not of two moments, the earlier first.
    """
    if after.time_s <= before.time_s:
        raise ValueError(f"the scrapes came at {before.time_s} and {after.time_s} s, expected the earlier first")
    between = _Between(before, after)
    pairs = sorted(
        {
            (labels["model"], labels["version"])
            for name, series in after.series
            for labels in [dict(series)]
            if name in ("nv_inference_request_success", f"{names.BATCH_ROWS.name}_count")
            and {"model", "version"} <= labels.keys()
        }
    )
    models = [_model(between, after, model, version) for model, version in pairs]
    shadows = []
    for version in after.values(names.SHADOW_ROWS.name, "version"):
        for candidate in after.values(names.SHADOW_ROWS.name, "candidate"):
            if seen := _shadowed(between.growth, version, candidate):
                per_s = seen.rows / between.seconds
                shadows.append(ShadowView(version, candidate, per_s, seen.overlap, seen.ms_per_row))
    tried = {version: between.grown(_AB, version=version) for version in after.values(_AB, "version")}
    split = sum(tried.values())
    ab = {version: rows / split for version, rows in tried.items()} if split else {}
    return View(between.seconds, models, shadows, ab, _devices(after))


def _devices(scrape: Scrape) -> dict[str, list[str]]:
    """Return the models that compute on each device; a version that is no longer served has NaN."""
    found: dict[str, set[str]] = {}
    for (name, series), value in scrape.series.items():
        if name == names.DEVICE.name and value == 1.0:
            labels = dict(series)
            found.setdefault(labels["device"], set()).add(labels["model"])
    return {device: sorted(found[device]) for device in sorted(found)}


def shadow_so_far(scrape: Scrape, version: int, candidate: int) -> Shadowed | None:
    """Return what the shadow of a version has done since the server began; None where it has done nothing yet."""
    return _shadowed(scrape, str(version), str(candidate))


def _shadowed(scrape: Scrape, version: str, candidate: str) -> Shadowed | None:
    rows, shared, seconds = (
        scrape.total(metric.name, version=version, candidate=candidate)
        for metric in (names.SHADOW_ROWS, names.SHADOW_OVERLAP, names.SHADOW_SECONDS)
    )
    return Shadowed(rows, shared / rows, 1e3 * seconds / rows) if rows else None


def _model(between: _Between, after: Scrape, model: str, version: str) -> ModelView:
    labels = {"model": model, "version": version}
    failures = {
        reason: between.rate("nv_inference_request_failure", reason=reason, **labels) for reason in _TRITON_FAILURES
    }
    # To the server, a request that its model has answered with an error is a success.
    ours = {
        outcome: between.rate(names.REQUESTS.name, outcome=outcome, **labels)
        for outcome in (names.REFUSED, names.EXPIRED, names.SHED, names.FAILED)
    }
    successes = between.grown("nv_inference_request_success", **labels)
    answered = max(successes - between.seconds * sum(ours.values()), 0.0)
    executions = between.buckets(names.STAGE_SECONDS.name, stage=names.TOTAL, **labels)
    rows = between.grown(names.ROWS.name, **labels)
    return ModelView(
        model=model,
        version=version,
        qps=answered / between.seconds,
        rows_per_s=rows / between.seconds,
        p50_ms=1e3 * quantile(0.5, executions),
        p99_ms=1e3 * quantile(0.99, executions),
        queue_ms=1e-3 * _ratio(between.grown("nv_inference_queue_duration_us", **labels), successes),
        pending=after.total("nv_inference_pending_request_count", **labels),
        batch_rows=_ratio(
            between.grown(f"{names.BATCH_ROWS.name}_sum", **labels),
            between.grown(f"{names.BATCH_ROWS.name}_count", **labels),
        ),
        rejected_per_s=failures["REJECTED"] + ours[names.SHED],
        refused_per_s=ours[names.REFUSED],
        expired_per_s=ours[names.EXPIRED],
        failed_per_s=failures["BACKEND"] + failures["OTHER"] + ours[names.FAILED],
        fallback=_ratio(between.grown(names.ROWS.name, outcome=names.FALLBACK, **labels), rows),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
