"""`fuserec top`: what happened between two texts of a metrics port."""

from __future__ import annotations

import http.server
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuserec.serve.launcher import Address
from fuserec.serve.state import noted
from fuserec.top import Scrape, quantile, view
from fuserec.traffic import Experiment, Traffic

TEXT = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="recommend",version="1"}} {requests}
nv_inference_request_failure{{model="recommend",reason="REJECTED",version="1"}} {rejected}
nv_inference_request_failure{{model="recommend",reason="BACKEND",version="1"}} {failed}
nv_inference_queue_duration_us{{model="recommend",version="1"}} {queue_us}
nv_inference_pending_request_count{{model="recommend",version="1"}} {pending}
# HELP fuserec_stage_seconds_bucket Seconds of a stage in one execution
# TYPE fuserec_stage_seconds_bucket counter
fuserec_stage_seconds_bucket{{stage="total",model="recommend",version="1",le="0.001"}} {fast}
fuserec_stage_seconds_bucket{{stage="total",model="recommend",version="1",le="0.002"}} {medium}
fuserec_stage_seconds_bucket{{stage="total",model="recommend",version="1",le="+Inf"}} {medium}
fuserec_stage_seconds_bucket{{stage="search",model="recommend",version="1",le="+Inf"}} {medium}
fuserec_batch_rows_sum{{model="recommend",version="1"}} {rows}
fuserec_batch_rows_count{{model="recommend",version="1"}} {medium}
fuserec_rows_total{{outcome="answered",model="recommend",version="1"}} {rows}
fuserec_rows_total{{outcome="fallback",model="recommend",version="1"}} {fallback}
fuserec_shadow_rows_total{{version="1",candidate="2"}} {shadowed}
fuserec_shadow_overlap_sum{{version="1",candidate="2"}} {common}
fuserec_shadow_seconds_sum{{version="1",candidate="2"}} {shadow_s}
fuserec_ab_rows_total{{version="1"}} {stayed}
fuserec_ab_rows_total{{version="2"}} {moved}
fuserec_index_created_seconds{{version="0"}} NaN
fuserec_device{{device="cpu",model="recommend",version="0"}} NaN
fuserec_device{{device="cuda",model="search",version="1"}} 1
fuserec_device{{device="cuda",model="recommend",version="1"}} 1
"""
# What is filled in, at the first moment and at the second.
VALUES: dict[str, tuple[float, float]] = {
    "requests": (100, 300),
    "rejected": (0, 4),
    "failed": (5, 9),
    "queue_us": (10_000, 50_000),
    "pending": (0, 7),
    "fast": (50, 130),
    "medium": (60, 160),
    "rows": (400, 760),
    "fallback": (10, 50),
    "shadowed": (0, 20),
    "common": (0, 15),
    "shadow_s": (0, 0.1),
    "stayed": (0, 75),
    "moved": (0, 25),
}
BEFORE, AFTER = ({name: values[moment] for name, values in VALUES.items()} for moment in (0, 1))


def scraped(values: dict[str, float], time_s: float) -> Scrape:
    return Scrape.parse(TEXT.format(**values), time_s)


def test_view_between_two_scrapes() -> None:
    seen = view(scraped(BEFORE, 10.0), scraped(AFTER, 12.0))
    [model] = seen.models
    assert (model.model, model.version, seen.seconds) == ("recommend", "1", 2.0)
    assert (model.qps, model.rows_per_s, model.pending) == (100, 200, 7)
    assert (model.rejected_per_s, model.failed_per_s) == (2, 2)
    assert model.queue_ms == pytest.approx(0.2)
    assert model.batch_rows == pytest.approx(3.6)
    assert model.fallback == pytest.approx(0.1)
    # Of 100 executions 80 took up to 1 ms, 20 up to 2 ms.
    assert model.p50_ms == pytest.approx(0.625)
    assert model.p99_ms == pytest.approx(1.95)
    [shadow] = seen.shadows
    assert (shadow.version, shadow.candidate, shadow.rows_per_s) == ("1", "2", 10)
    assert (shadow.overlap, shadow.ms_per_row) == (pytest.approx(0.75), pytest.approx(5.0))
    assert seen.ab == {"1": 0.75, "2": 0.25}
    assert seen.devices == {"cuda": ["recommend", "search"]}


def test_nothing_happened() -> None:
    seen = view(scraped(AFTER, 10.0), scraped(AFTER, 12.0))
    [model] = seen.models
    assert model.qps == model.rejected_per_s == 0
    assert all(map(math.isnan, (model.p50_ms, model.p99_ms, model.queue_ms, model.batch_rows, model.fallback)))
    assert seen.shadows == [] and seen.ab == {}


def test_a_server_that_began_anew_has_counted_from_nothing() -> None:
    [model] = view(scraped(AFTER, 10.0), scraped(BEFORE, 12.0)).models
    assert (model.qps, model.failed_per_s, model.rejected_per_s) == (50, 2.5, 0)


def test_scrapes_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the earlier first"):
        view(scraped(BEFORE, 2.0), scraped(AFTER, 2.0))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 2.0), (0.8, 2.0), (1.0, 2.0)],
)
def test_quantile(share: float, expected: float) -> None:
    """Half lay up to 1, a quarter up to 2, a quarter beyond."""
    assert quantile(share, [(1.0, 4.0), (2.0, 6.0), (math.inf, 8.0)]) == pytest.approx(expected)


def test_quantile_of_nothing() -> None:
    assert math.isnan(quantile(0.5, []))
    assert math.isnan(quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]))


@pytest.fixture
def port() -> Iterator[int]:
    """A metrics port that goes on from `BEFORE` to `AFTER`."""
    states = itertools.chain([BEFORE], itertools.repeat(AFTER))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/metrics"
            self.send_response(200 if known else 404)
            self.end_headers()
            if known:
                self.wfile.write(TEXT.format(**next(states)).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_command_as_json(port: int, fuserec: Callable[..., tuple[int, str]]) -> None:
    status, printed = fuserec("top", f"http://127.0.0.1:{port}", "--once", "--json", "--interval", "0.1")
    assert status == 0, printed
    document = json.loads(printed)
    assert document["models"][0]["fallback"] == pytest.approx(0.1)
    assert document["ab"] == {"1": 0.75, "2": 0.25}


def test_command_for_people(port: int, fuserec: Callable[..., tuple[int, str]]) -> None:
    status, printed = fuserec("top", f"http://127.0.0.1:{port}/metrics", "--once", "--interval", "0.1")
    assert status == 0, printed
    for words in ("recommend", "10.0%", "version 2 beside 1: 75.0% of the items", "version 1 75.0%, version 2 25.0%"):
        assert words in printed, printed


def test_traffic_tells_what_the_shadow_did(
    port: int, fuserec: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    repository = tmp_path / "repository"
    for version in ("1", "2"):
        (repository / "recommend" / version).mkdir(parents=True)
        (repository / "recommend" / version / "manifest.json").write_text("{}")
    Traffic(1, Experiment("shadow", 2, 0.5)).write(repository)
    with noted(Address(metrics_port=port), repository):
        _, before = fuserec("traffic", "127.0.0.1:8001", "--json")
        _, after = fuserec("traffic", "127.0.0.1:8001", "--json")
        status, shown = fuserec("traffic", "127.0.0.1:8001")
    assert json.loads(before)["experiment"] == {"kind": "shadow", "version": 2, "share": 0.5}
    assert json.loads(after)["experiment"] == pytest.approx(
        {"kind": "shadow", "version": 2, "share": 0.5, "rows": 20, "overlap": 0.75, "ms_per_row": 5.0}
    )
    assert status == 0 and "20 rows, 75.0% of the items in common, 5.00 ms a row" in shown


@pytest.mark.parametrize(
    ("url", "expected", "message"),
    [
        ("127.0.0.1:8002", 2, "expected a URL such as"),
        ("http://127.0.0.1:9", 1, "does not answer with metrics"),
    ],
)
def test_command_without_a_server(
    url: str, expected: int, message: str, fuserec: Callable[..., tuple[int, str]]
) -> None:
    status, printed = fuserec("top", url, "--once")
    assert (status, message in printed) == (expected, True), printed


def test_what_is_no_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="html"):
        Scrape.parse("<html>\n", 0.0)
