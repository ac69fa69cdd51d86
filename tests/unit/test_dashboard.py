"""The Grafana dashboard asks for metrics that a worker has, by labels that they have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import pytest

from taskq.message import DEAD_REASON, Message, Publication
from taskq.workers.metrics import Metrics
from taskq.workers.outcome import SUCCEEDED, Outcome
from taskq.workers.vitals import Place, Vitals
from taskq.workers.watchdog import Depths
from tests.metrics import samples
from tests.support import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/taskq.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: What Prometheus adds to whatever it has asked for.
ADDED = {"job", "instance"}
METRIC = re.compile(r"(taskq_\w+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of each metric of a worker to which everything has happened once."""
    vitals = Vitals(0.0)
    vitals.connected(0.0)
    dead = Message(headers={"task": "mail", DEAD_REASON: "crashed"}, body=b"")
    vitals.ended("mail", SUCCEEDED, 1.0, 1.0)
    vitals.decided(Outcome("dead-lettered", (Publication("mail.dead", dead),)))
    vitals.child_died("SIGKILL", "time limit")
    vitals.places = (Place(1, True, True),)
    labels: dict[str, set[str]] = defaultdict(set)
    for sample in samples(Metrics(vitals, lambda: Depths(1.0, {"mail": 1}, {"mail": 1.0})).answer().body.decode()):
        labels[sample.name] |= sample.labels.keys()
    return labels


def queries() -> list[str]:
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return asked + [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]


@pytest.mark.parametrize("query", queries())
def test_each_query_asks_for_what_there_is(query: str, exported: dict[str, set[str]]) -> None:
    asked = METRIC.findall(query)
    assert asked
    known = set(ADDED)
    for name, selector in asked:
        assert name in exported
        assert set(re.findall(r"(\w+)=", selector)) <= exported[name] | ADDED
        known |= exported[name]
    for labels in GROUPING.findall(query):
        assert set(labels.split(", ")) <= known


def test_every_metric_is_shown_somewhere(exported: dict[str, set[str]]) -> None:
    shown = {name for query in queries() for name, _ in METRIC.findall(query)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported}
    plain = {"taskq_worker_start_time_seconds", "taskq_queue_asked_time_seconds", "taskq_worker_draining"}
    assert families - plain == {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}


def test_it_can_be_loaded() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    covered = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(covered) == len(set(covered)), "panels lie on each other"
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert {name for name in used if not name.startswith("__")} == defined
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
