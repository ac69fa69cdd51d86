"""The settings: combinations that work, and that their owner may not have meant. Pure, but for the number of processors."""

from __future__ import annotations

import os
from collections.abc import Iterator

from taskq.config import DEFAULTS, NAMES, Settings, cpu_count, masked
from taskq.doctor.finding import Finding, ok, warning
from taskq.doctor.patient import Patient

#: How long supervisors of workers wait after SIGTERM until they kill, unless they are told otherwise, in seconds.
_SYSTEMD_KILLS, _KUBERNETES_KILLS = 90.0, 30.0


def settings(patient: Patient) -> Iterator[Finding]:
    """Which ones are not the defaults and where they come from, and what is odd about them."""
    effective = patient.settings
    set_ = [name for name in NAMES if effective.sources[name] != "default" and getattr(effective, name) != DEFAULTS[name]]
    shown = [f"{name}={masked(str(getattr(effective, name)))} ({effective.sources[name]})" for name in set_]
    yield ok("settings", f"not the defaults: {', '.join(shown)}" if shown else "all are the defaults")
    yield from odd(effective, in_kubernetes="KUBERNETES_SERVICE_HOST" in os.environ, processors=cpu_count())


def odd(settings: Settings, *, in_kubernetes: bool, processors: int) -> Iterator[Finding]:
    """What is odd about these."""

    def found(name: str, text: str, mend: str) -> Finding:
        value, source = getattr(settings, name), settings.sources.get(name, "default")
        return warning("settings", f"{name}={value:g} ({source}): {text}", mend)

    kills, who = (_KUBERNETES_KILLS, "Kubernetes") if in_kubernetes else (_SYSTEMD_KILLS, "systemd")
    if settings.grace >= kills:
        mend = "set terminationGracePeriodSeconds" if in_kubernetes else "set TimeoutStopSec"
        text = f"{who} kills after {kills:g} s, unless it is told otherwise, so that tasks are cut off and run again"
        yield found("grace", text, f"{mend} to more than that, or lower it")
    if settings.concurrency > 4 * processors:
        text = f"children on {processors} processors: each takes memory, and few get to run"
        yield found("concurrency", text, "lower it, unless the tasks do little but wait")
    if settings.keeps_results and settings.result_ttl < 60:
        yield found("result_ttl", "whoever asks later than that finds no result", "raise it to an hour or more")
    if settings.broker.startswith("amqp"):
        if not settings.heartbeat:
            yield found("heartbeat", "a connection that died in silence is not noticed for hours", "set 10")
        if settings.queue_type == "quorum" and settings.delivery_limit < 100:
            text = "RabbitMQ 3.10 counts graceful returns too, and dead-letters what has had so many"
            yield found("delivery_limit", text, "leave it at 1000; max_crashes is what stops poison")
    if settings.publish_timeout < 1:
        yield found("publish_timeout", "a broker that is busy for a moment fails calls", "set 5")
