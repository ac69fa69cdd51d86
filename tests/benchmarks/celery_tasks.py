"""Celery as its documentation advises for tasks that must not be lost: acks_late, the default prefetch (4 per process)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from celery import Celery

from tests.benchmarks.stamps import execute

app = Celery("benchmarks", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_default_queue=os.environ["BENCH_QUEUE"],
)
noop = app.task(name="execute")(execute)


def unconfirmed(indices: Iterable[int]) -> None:
    for index in indices:
        noop.delay(index)


def confirmed(indices: Iterable[int]) -> None:
    app.conf.broker_transport_options = {"confirm_publish": True}
    unconfirmed(indices)


close = app.close
SENDERS = {"confirmed": confirmed, "unconfirmed": unconfirmed}
