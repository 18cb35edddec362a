"""Alerts and dashboards ask for metrics, and labels of them, that the code really exports; alerts have a runbook."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from serving import metrics
from serving.health import Watched
from tests.chart.promql import parse
from tests.chart.rendering import CHART, of_kind, rendered, template

SCRAPED = {"namespace", "pod", "job", "instance"}
"""Labels that Prometheus adds."""
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))


@functools.cache
def exported() -> dict[str, tuple[str, set[str]]]:
    """Name as scraped -> its kind and its labels."""
    found: dict[str, tuple[str, set[str]]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            labels = set(metric._labelnames)
            if family.type == "histogram":
                found |= {f"{family.name}_{part}": ("counter", labels) for part in ("sum", "count")}
                found[f"{family.name}_bucket"] = ("counter", labels | {"le"})
            elif family.type == "counter":
                found[f"{family.name}_total"] = ("counter", labels)
            else:
                found[family.name] = (family.type, labels)

    class Idle:
        def tick(self, now: float) -> bool:
            return True

        def close(self) -> None: ...

    for family in Watched(Idle()).collect():
        for sample in family.samples:
            found[sample.name] = (family.type, set(sample.labels))
    return found


def faults(expression: str) -> list[str]:
    asked = parse(expression)
    wrong = [f"nothing exports {name}" for name in asked.labels if name not in exported()]
    for name in asked.labels.keys() & exported().keys():
        kind, labels = exported()[name]
        if unknown := asked.labels[name] - labels - SCRAPED:
            wrong.append(f"{name} has no labels {sorted(unknown)}")
        if kind == "counter" and name not in asked.ranged:
            wrong.append(f"{name} is a counter: ask for its rate")
    return wrong


def alerts() -> list[dict[str, Any]]:
    (rule,) = of_kind(rendered("cpu-production"), "PrometheusRule")
    found: list[dict[str, Any]] = rule["spec"]["groups"][0]["rules"]
    return found


def test_alerts_ask_for_metrics_that_are_exported() -> None:
    assert len(alerts()) >= 10
    wrong = {alert["alert"]: said for alert in alerts() if (said := faults(alert["expr"]))}
    assert not wrong


def test_alerts_ask_in_their_own_namespace_and_leave_no_placeholder() -> None:
    for alert in alerts():
        assert 'namespace="search"' in alert["expr"]
        assert "@" not in alert["expr"]


def test_the_texts_of_alerts_use_labels_that_their_expressions_keep() -> None:
    for alert in alerts():
        kept = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"by \(([^)]*)\)", alert["expr"]))))
        named = set(re.findall(r"\$labels\.([a-z_]+)", alert["annotations"]["summary"]))
        assert named <= kept, alert["alert"]


def test_each_alert_has_a_runbook_under_its_own_heading() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in (CHART / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    }
    for alert in alerts():
        page, anchor = alert["annotations"]["runbook_url"].split("#")
        assert page.endswith("README.md")
        assert anchor in headings, f"{alert['alert']}: no heading {anchor}"


def test_limits_reach_the_expressions() -> None:
    done = template("cpu-production", "--set-json", "monitoring.limits.errorRatio=0.125")
    assert done.returncode == 0, done.stderr
    (rule,) = [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "PrometheusRule"]
    (alert,) = [one for one in rule["spec"]["groups"][0]["rules"] if one["alert"] == "PalateErrors"]
    assert alert["expr"].endswith("> 0.125")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_metrics_that_are_exported(path: Any) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert panels
    wrong = {}
    for panel in panels:
        for target in panel["targets"]:
            said = faults(target["expr"])
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))) | SCRAPED
            if said or named - kept:
                wrong[panel["title"]] = said or f"its legend names {sorted(named - kept)}"
    assert not wrong
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
            assert not faults(metric)
            assert label in exported()[re.split(r"[{]", metric)[0]][1] | SCRAPED


def test_dashboards_differ_and_do_not_overlap() -> None:
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) >= 3
    for board in boards:
        cells = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & mine
            assert at["x"] + at["w"] <= 24
            cells |= mine


def test_dashboards_arrive_whole_in_their_config_maps() -> None:
    maps = of_kind(rendered("cpu-production"), "ConfigMap")
    for path in DASHBOARDS:
        (found,) = [one["data"] for one in maps if one["metadata"]["name"] == f"palate-dashboard-{path.stem}"]
        assert json.loads(found[f"palate-{path.stem}.json"]) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "wrong",
    [
        "sum by (app (rate(x[5m]))",
        "rate(x[5])",
        'x{app="a"',
        "sum(x) >",
        "x y",
        "unknown(x)",
        'x{app~"a"}',
        "rate(x[5m]",
    ],
)
def test_the_reader_of_promql_refuses(wrong: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(wrong)


def test_the_reader_of_promql_finds_metrics_labels_and_counters_without_a_rate() -> None:
    assert faults("sum by (app) (rate(palate_requests_total[5m]))") == []
    assert faults("sum by (colour) (rate(palate_requests_total[5m]))") == [
        "palate_requests_total has no labels ['colour']"
    ]
    assert faults("palate_request_total") == ["nothing exports palate_request_total"]
    assert faults("palate_requests_total > 1") == ["palate_requests_total is a counter: ask for its rate"]
