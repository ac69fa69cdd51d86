"""The metrics, out of vitals that the test has set."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from taskq.version import version
from taskq.workers.metrics import Metrics
from taskq.workers.outcome import SUCCEEDED, Outcome
from taskq.workers.vitals import MOST_TASKS, RUN_BOUNDS, Place, Vitals
from taskq.workers.watchdog import Depths
from tests.metrics import Sample, samples


@pytest.fixture
def vitals() -> Vitals:
    return Vitals(0.0)


def read(vitals: Vitals, depths: Callable[[], Depths | None] = lambda: None) -> list[Sample]:
    return samples(Metrics(vitals, depths).answer().body.decode())


def value(found: list[Sample], name: str, **labels: str) -> float:
    [only] = [sample.value for sample in found if sample.name == name and sample.labels.items() >= labels.items()]
    return only


def test_what_was_counted_is_there(vitals: Vitals) -> None:
    vitals.ended("mail", SUCCEEDED, 0.3, 2.0)
    vitals.ended("mail", SUCCEEDED, 40.0, 0.0)
    vitals.ended("", Outcome("retried"))
    vitals.child_died("SIGSEGV", "")
    vitals.child_died("SIGKILL", "time limit")
    vitals.settlements.observe(0.002)
    vitals.places = (Place(os.getpid(), True, True), Place(None, False, False))
    found = read(vitals)
    assert value(found, "taskq_task_outcomes_total", task="mail", outcome="succeeded") == 2
    assert value(found, "taskq_task_outcomes_total", task="other", outcome="retried") == 1
    assert value(found, "taskq_task_run_seconds_count", task="mail") == 2
    assert value(found, "taskq_task_run_seconds_sum", task="mail") == 40.3
    assert value(found, "taskq_task_run_seconds_bucket", task="mail", le="30.0") == 1
    assert value(found, "taskq_task_run_seconds_bucket", task="mail", le="+Inf") == 2
    assert value(found, "taskq_task_wait_seconds_bucket", task="mail", le="0.005") == 1
    assert value(found, "taskq_child_deaths_total", cause="SIGSEGV", reason="") == 1
    assert value(found, "taskq_child_deaths_total", cause="SIGKILL", reason="time limit") == 1
    assert value(found, "taskq_settle_seconds_count") == 1
    assert [value(found, "taskq_slots", state=state) for state in ("busy", "free", "down")] == [1, 0, 1]
    assert value(found, "taskq_child_memory_bytes", slot="0") > 2**20
    assert value(found, "taskq_build_info", version=version()) == 1


def test_queues_are_told_as_they_were_found_last(vitals: Vitals) -> None:
    assert not [sample for sample in read(vitals) if sample.name.startswith("taskq_queue")]
    depths = Depths(5.0, {"mail": 3, "shop": 2, "idle": 0}, {"mail": 1.5})
    assert not [sample for sample in read(vitals, lambda: depths) if sample.name.startswith("taskq_queue")], "it is away"
    vitals.connected(1.0)
    found = read(vitals, lambda: depths)
    assert value(found, "taskq_queue_ready_messages", queue="mail") == 3
    ages = {sample.labels["queue"]: sample.value for sample in found if sample.name == "taskq_queue_oldest_age_seconds"}
    assert ages == {"mail": 1.5, "idle": 0.0}, "what nobody knows is left out"


def test_the_number_of_series_is_bounded(vitals: Vitals) -> None:
    for number in range(10 * MOST_TASKS):
        vitals.ended(f"task {number}", SUCCEEDED, 1.0, 1.0)
    assert len({sample.labels["task"] for sample in read(vitals) if "task" in sample.labels}) == MOST_TASKS + 1
    assert len(read(vitals)) < (MOST_TASKS + 1) * (2 * (len(RUN_BOUNDS) + 4) + 1) + 100


def test_names_follow_the_customs_and_every_metric_is_described(vitals: Vitals) -> None:
    for family in text_string_to_metric_families(Metrics(vitals, lambda: None).answer().body.decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            assert re.fullmatch(r"taskq_[a-z_]+", sample.name)
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
