"""Alerts, dashboard and the autoscaler's rule: PromQL that parses, over metrics and labels that are exported."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from fuserec.serve import telemetry

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "fuserec.json"
# Labels that Prometheus or its operator adds to whatever it scrapes.
SCRAPED = {"instance", "job", "namespace", "pod"}
MODEL = {"model", "version"}
METRICS: dict[str, set[str]] = {
    "up": set(),
    # Triton's.
    "nv_inference_request_success": MODEL,
    "nv_inference_request_failure": {"reason", *MODEL},
    "nv_inference_queue_duration_us": MODEL,
    "nv_inference_pending_request_count": MODEL,
    "nv_inference_exec_count": MODEL,
    **{name: set(labels) for metric in telemetry.METRICS for name, labels in metric.series.items()},
}
VALUES = {
    "stage": set(telemetry.STAGES),
    "outcome": set(telemetry.OUTCOMES) | set(telemetry.REQUEST_OUTCOMES),
    "reason": {"REJECTED", "CANCELED", "BACKEND", "OTHER"},
}


def queries() -> Iterator[tuple[str, str]]:
    """Every query in deploy/, by where it stands, with what Grafana and the adapter fill in filled in."""
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            filled = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield f"panel {panel['title']} {target['refId']}", filled
    for rule in yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]:
        filled = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="x"')
        yield "adapter", filled
        yield "adapter's series", rule["seriesQuery"]


QUERIES = dict(queries())


def selectors(expression: object) -> list[promql_parser.VectorSelector]:
    """Every selection of a metric in a query."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: object) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(expression, visit)
    return found


@pytest.mark.parametrize("where", QUERIES)
def test_query_parses_and_asks_for_what_is_exported(where: str) -> None:
    query = QUERIES[where]
    assert "$" not in query, "Grafana knows more variables than this test fills in"
    expression = promql_parser.parse(query)
    found = selectors(expression)
    assert found, f"{query} asks for no metric"
    for selector in found:
        assert selector.name in METRICS, f"{selector.name} is exported by nobody"
        for matcher in selector.matchers.matchers:
            assert matcher.name in METRICS[selector.name] | SCRAPED, f"{selector.name} has no label {matcher.name}"
            for value in matcher.value.split("|") if matcher.name in VALUES else ():
                assert value in VALUES[matcher.name], f"{matcher.name} is never {value}"

    def check_grouping(node: object) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            for selector in selectors(node.expr):
                unknown = set(node.modifier.labels) - METRICS[str(selector.name)] - SCRAPED
                assert not unknown, f"{selector.name} has no label {unknown} to group by"

    promql_parser.walk(expression, check_grouping)


def test_a_wrong_name_would_be_found() -> None:
    """The walk above reaches into functions, quotients and sums."""
    query = "histogram_quantile(0.9, sum by (le) (rate(a_bucket[1m]))) / (b > 0) + sum(c)"
    assert {selector.name for selector in selectors(promql_parser.parse(query))} == {"a_bucket", "b", "c"}


def test_every_metric_of_ours_is_shown_or_watched() -> None:
    asked = {selector.name for query in QUERIES.values() for selector in selectors(promql_parser.parse(query))}
    counts_of_histograms = {"fuserec_stage_seconds_count"}
    assert {name for name in METRICS if name.startswith("fuserec_")} - asked <= counts_of_histograms


def test_alerts_say_what_to_do() -> None:
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert {"summary", "action"} <= set(rule["annotations"]), rule["alert"]
            assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
            # A label in the text must be one that the expression leaves.
            grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
            named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            assert named <= (grouped or {"instance", "job"}), f"{rule['alert']} names {named}, has {grouped}"


def test_panels_neither_overlap_nor_share_an_id() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_dashboard_finds_its_source() -> None:
    """Panels take their source from a variable, and what Compose provisions is of the kind that it lists."""
    document = json.loads(DASHBOARD.read_text())
    [source] = [variable for variable in document["templating"]["list"] if variable["type"] == "datasource"]
    [provisioned] = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert provisioned["type"] == source["query"]
    for panel in document["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == f"${{{source['name']}}}", panel["title"]


def test_prometheus_reads_the_alerts_and_scrapes_the_metrics_port() -> None:
    document = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    for name in document["rule_files"]:
        assert (DEPLOY / "prometheus" / name).is_file(), name
    [job] = document["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["fuserec:8002"]}]
