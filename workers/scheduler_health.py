"""Health of a process that sees to schedules alone: whether it lives and is ready, and its metrics, told over HTTP.

Live means that its loop turns: it waits for a few seconds at most, and each step of a turn has its own deadline. Ready means
that its last turn reached the broker and the backend: it sends what is due, or would if the process that leads ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from taskq.workers.health import Verdict, told
from taskq.workers.scheduler import Scheduler
from taskq.workers.web import Answer

#: For how long a turn may last, in seconds: connecting to servers that are slow, and many ticks at once, take some of them.
HELD_UP = 60.0


class SchedulerHealth(Collector):
    """Answers who asks over HTTP, without a word to the scheduler's thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answer(self, path: str) -> Answer:
        """The answer for this path."""
        match path:
            case "/livez":
                return told("live", self._live())
            case "/readyz":
                return told("ready", self._ready())
            case "/metrics":
                return Answer(200, generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)
        return Answer(404, b"here are /livez, /readyz and /metrics\n")

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        scheduler = self._scheduler
        about = {
            "live": ("Whether /livez says yes.", self._live().good),
            "ready": ("Whether /readyz says yes.", self._ready().good),
            "leads": ("Whether this process sends what is due.", scheduler.leads),
            "schedules": ("The schedules that it sees to.", scheduler.schedules),
            "turn_age_seconds": ("How long ago its loop turned.", max(0.0, time.monotonic() - scheduler.turned_at)),
        }
        for name, (text, value) in about.items():
            yield GaugeMetricFamily(f"taskq_scheduler_{name}", text, float(value))
        yield CounterMetricFamily("taskq_scheduler_ticks", "Ticks that this process has sent.", scheduler.sent)

    def _live(self) -> Verdict:
        held_up = time.monotonic() - self._scheduler.turned_at
        if held_up > HELD_UP:
            return Verdict(False, f"the scheduler's loop has not turned for {held_up:.0f} s")
        return Verdict(True, "it leads" if self._scheduler.leads else "it does not lead")

    def _ready(self) -> Verdict:
        alive = self._live()
        if alive.good and not self._scheduler.reached:
            return Verdict(False, "the broker or the backend is away, or refuses; see the log")
        return alive
