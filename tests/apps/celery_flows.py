"""A Celery fleet that knows some of the tasks of ``tests.apps.flows``, and shares their queue and their backend."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.apps.traces import trace

app = Celery("flows", broker=os.environ["TASKQ_BROKER"], backend=os.environ["TASKQ_BACKEND"], set_as_current=False)
app.conf.task_default_queue = os.environ["TASKQ_DEFAULT_QUEUE"]
app.conf.worker_hijack_root_logger = False
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 1


@app.task(name="work")  # type: ignore[untyped-decorator]  # Celery ships no types
def work(number: int, seconds: float = 0.0) -> int:
    trace("celery", task="work")
    return number


@app.task(name="note", bind=True)  # type: ignore[untyped-decorator]  # as above
def note(self: Any, *values: Any, name: str = "") -> list[Any]:
    trace("celery", task="note")
    return list(values)


@app.task(name="fail", bind=True)  # type: ignore[untyped-decorator]  # as above
def fail(self: Any, *values: Any) -> None:
    trace("celery", task="fail")
    raise ValueError("no", *values)


@app.task(name="finish", bind=True)  # type: ignore[untyped-decorator]  # as above
def finish(self: Any, value: Any, key: str) -> Any:
    trace("finish", key=key, id=self.request.id, attempt=[0, 0], by="celery")
    return value


@app.task(name="give_up", bind=True)  # type: ignore[untyped-decorator]  # as above
def give_up(self: Any, task_id: str, key: str) -> None:
    trace("give_up", key=key, id=self.request.id, attempt=[0, 0], task_id=task_id, by="celery")
