"""The metrics port of the real server tells what was asked, beside Triton's own numbers."""

from __future__ import annotations

import datetime

import pytest

from fuserec.client import InvalidRequest, Query, Recommender
from fuserec.serve import telemetry
from fuserec.serve.launcher import Server
from fuserec.top import Scrape

from .scraping import scrape, settled, wait_for

pytestmark = pytest.mark.serving
FRONT = {"model": "recommend", "version": "1"}


@pytest.fixture
def client(server: Server) -> Recommender:
    with Recommender(f"127.0.0.1:{server.address.grpc_port}", timeout_ms=10_000) as client:
        yield client


def rows(found: Scrape, **labels: str) -> float:
    return found.total("fuserec_rows_total", **FRONT, **labels)


def test_calls_are_counted(server: Server, client: Recommender) -> None:
    before = settled(server)
    for _ in range(5):
        client.recommend(user_id=5, k=3)
    client.recommend(user_id=10**9, history=[1, 2, 3], k=3)  # nobody, with three ids that are nowhere
    after = settled(server)

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert grown("fuserec_rows_total", **FRONT, outcome="answered") == 5
    assert grown("fuserec_rows_total", **FRONT, outcome="fallback") == 1
    assert grown("fuserec_unknown_ids_total", **FRONT) == 3
    assert grown("fuserec_certified_total") + grown("fuserec_repaired_total") == 6
    assert grown("fuserec_batch_rows_sum", **FRONT) == 6
    executions = grown("fuserec_batch_rows_count", **FRONT)
    for stage in ("encode", "search", "total"):
        assert grown("fuserec_stage_seconds_count", **FRONT, stage=stage) == executions, stage
    assert grown("fuserec_stage_seconds_count", **FRONT, stage="rank") == 0, "this bundle has no ranker"
    staged = sum(grown("fuserec_stage_seconds_sum", **FRONT, stage=stage) for stage in telemetry.STAGES[:-1])
    assert 0 < staged < grown("fuserec_stage_seconds_sum", **FRONT, stage="total")
    assert grown("fuserec_stage_seconds_bucket", **FRONT, stage="total", le="+Inf") == executions
    assert grown("nv_inference_exec_count", **FRONT) == executions, "Triton counts otherwise"


def test_refused_rows_are_counted(server: Server, client: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settled(server)
    monkeypatch.setattr("fuserec.client._wire._k", int)
    with pytest.raises(InvalidRequest):
        client.recommend(user_id=5, k=0)
    wait_for(server, lambda found: rows(found, outcome="refused") - rows(before, outcome="refused") == 1, "one refused")


def test_every_series_is_there_from_the_start_and_no_other(server: Server) -> None:
    found = scrape(server)
    told = {name: {label for label, _ in pairs} for name, pairs in found.series if name.startswith("fuserec_")}
    known = {name: set(labels) for metric in telemetry.METRICS for name, labels in metric.series.items()}
    of_experiments = {name for name in known if "_shadow_" in name or "_ab_" in name}
    assert told == {name: labels for name, labels in known.items() if name not in of_experiments}
    stages = {dict(pairs)["stage"] for name, pairs in found.series if name == "fuserec_stage_seconds_count"}
    assert stages == set(telemetry.STAGES)
    for model in server.manifest.models:
        assert ("fuserec_batch_rows_count", frozenset({("model", model), ("version", "1")})) in found.series, model


def test_index_has_an_age(server: Server) -> None:
    created = datetime.datetime.fromisoformat(server.manifest.created).timestamp()
    found = scrape(server)
    assert found.series["fuserec_index_created_seconds", frozenset({("version", "1")})] == created


def test_histogram_of_counters_is_cumulative(server: Server, client: Recommender) -> None:
    before = settled(server)
    client.recommend_many([Query(user_id=5 + 3 * row, k=2) for row in range(8)])
    found = settled(server)
    for bound, more in (("4.0", 0), ("8.0", 1)):
        grown = [each.total("fuserec_batch_rows_bucket", **FRONT, le=bound) for each in (before, found)]
        assert grown[1] - grown[0] == more, f"batches of up to {bound} rows, before and after one of 8"
    totals = sorted(
        (float(dict(pairs)["le"]), value)
        for (name, pairs), value in found.series.items()
        if name == "fuserec_stage_seconds_bucket" and {*FRONT.items(), ("stage", "total")} <= pairs
    )
    assert len(totals) == len(telemetry.STAGE_SECONDS.bounds) + 1
    assert [value for _, value in totals] == sorted(value for _, value in totals)
