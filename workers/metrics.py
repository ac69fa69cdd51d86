"""Metrics: a worker's vitals in Prometheus' format, for the supervisor and all its children together.

They are put together when somebody asks, from counters that are there anyway. The number of series is bounded: tasks beyond
the first ``MOST_TASKS`` are counted together, queues are those that are consumed, and no label holds what a message says.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from taskq.version import version
from taskq.workers.health import live, ready
from taskq.workers.memory import resident
from taskq.workers.vitals import OTHER, Histogram, Tally, Vitals
from taskq.workers.watchdog import Depths
from taskq.workers.web import Answer

Families = Iterator[Metric]


class Metrics(Collector):
    """What ``/metrics`` says. ``depths`` returns what the queues were last found to hold, without asking the broker."""

    def __init__(self, vitals: Vitals, depths: Callable[[], Depths | None]) -> None:
        self._vitals = vitals
        self._depths = depths
        self._registry = CollectorRegistry()
        # The first answer would lack the queues otherwise.
        depths()
        self._registry.register(self)

    def answer(self) -> Answer:
        """Everything, as text."""
        return Answer(200, generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the library would otherwise collect once to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        vitals, now = self._vitals, time.monotonic()
        yield from _worker(vitals, now)
        yield from _broker(vitals)
        # What a broker that is away held once is no news of now.
        if (depths := self._depths()) is not None and vitals.connected_since is not None:
            yield from _queues(depths)
        yield from _slots(vitals)
        yield from _tasks({**vitals.tallies, OTHER: vitals.other})
        yield from _ends(vitals)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"taskq_{name}", about, value)


def _worker(vitals: Vitals, now: float) -> Families:
    build = GaugeMetricFamily("taskq_build_info", "What runs here; always 1.", labels=["version", "python"])
    build.add_metric([version(), platform.python_version()], 1)
    yield build
    yield _gauge(
        "worker_start_time_seconds", "When the worker started, since the epoch.", time.time() - now + vitals.started_at
    )
    yield _gauge("worker_live", "Whether /livez says yes.", live(vitals, now).good)
    yield _gauge("worker_ready", "Whether /readyz says yes.", ready(vitals, now).good)
    yield _gauge("worker_draining", "Whether the worker was told to end.", vitals.draining)
    yield _gauge("worker_turn_age_seconds", "How long ago the loop turned.", max(0.0, now - vitals.turned_at))


def _broker(vitals: Vitals) -> Families:
    yield _gauge("broker_connected", "Whether the worker is connected to the broker.", vitals.connected_since is not None)
    yield CounterMetricFamily("taskq_broker_connections", "Connections to the broker that were made.", vitals.connections)
    yield CounterMetricFamily("taskq_deliveries", "Messages that the broker has delivered.", vitals.delivered)
    yield CounterMetricFamily(
        "taskq_redeliveries", "Delivered messages that came back although nobody gave them back.", vitals.redelivered
    )
    yield _gauge("custody_messages", "Delivered messages that wait or run here.", vitals.held)
    yield _histogram("publish_seconds", "From the publishing of what follows a task to the confirmation.", vitals.confirmations)
    yield _histogram("settle_seconds", "From a task's end to the ack of its message.", vitals.settlements)


def _queues(depths: Depths) -> Families:
    waiting = GaugeMetricFamily("taskq_queue_ready_messages", "Messages that wait in the queue.", labels=["queue"])
    for queue, count in sorted(depths.ready.items()):
        waiting.add_metric([queue], count)
    yield waiting
    oldest = GaugeMetricFamily(
        "taskq_queue_oldest_age_seconds", "How long the oldest message has waited, where the broker can tell.", labels=["queue"]
    )
    for queue, count in sorted(depths.ready.items()):
        if queue in depths.oldest or not count:
            oldest.add_metric([queue], depths.oldest.get(queue, 0.0))
    yield oldest
    yield _gauge("queue_asked_time_seconds", "When the broker was asked about its queues, since the epoch.", depths.asked_at)


def _slots(vitals: Vitals) -> Families:
    slots = GaugeMetricFamily("taskq_slots", "Places for children, by what their child does.", labels=["state"])
    busy = sum(place.busy for place in vitals.places)
    free = sum(place.ready and not place.busy for place in vitals.places)
    for state, count in (("busy", busy), ("free", free), ("down", len(vitals.places) - busy - free)):
        slots.add_metric([state], count)
    yield slots
    memory = GaugeMetricFamily("taskq_child_memory_bytes", "Resident memory of the slot's child.", labels=["slot"])
    for index, place in enumerate(vitals.places):
        if place.process_id is not None:
            memory.add_metric([str(index)], resident(place.process_id))
    yield memory
    yield _gauge("supervisor_memory_bytes", "Resident memory of the supervisor.", resident(os.getpid()))
    deaths = CounterMetricFamily(
        "taskq_child_deaths",
        "Children that died, by signal or exit code, and why they were killed, if that was the supervisor.",
        labels=["cause", "reason"],
    )
    for (cause, reason), count in sorted(vitals.deaths.copy().items()):
        deaths.add_metric([cause, reason], count)
    yield deaths


def _tasks(tallies: dict[str, Tally]) -> Families:
    outcomes = CounterMetricFamily(
        "taskq_task_outcomes", "What became of delivered messages: succeeded, retried, crashed, …", labels=["task", "outcome"]
    )
    waits = HistogramMetricFamily(
        "taskq_task_wait_seconds", "How long messages could have run before they began.", labels=["task"]
    )
    runs = HistogramMetricFamily("taskq_task_run_seconds", "How long tasks ran, however they ended.", labels=["task"])
    for name, tally in sorted(tallies.items()):
        for outcome, count in sorted(tally.outcomes.copy().items()):
            outcomes.add_metric([name, outcome], count)
        for family, histogram in ((waits, tally.waits), (runs, tally.runs)):
            if any(histogram.counts):
                family.add_metric([name], *_buckets(histogram))
    yield from (outcomes, waits, runs)


def _ends(vitals: Vitals) -> Families:
    letters = CounterMetricFamily("taskq_dead_letters", "Messages that were dead-lettered, by reason.", labels=["reason"])
    for reason, count in sorted(vitals.dead_letters.copy().items()):
        letters.add_metric([reason], count)
    yield letters


def _histogram(name: str, about: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(f"taskq_{name}", about, labels=[])
    family.add_metric([], *_buckets(histogram))
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """The counts as Prometheus has them, each with all that is below it; and the sum."""
    total, buckets = 0, []
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], list(histogram.counts), strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets, histogram.sum
