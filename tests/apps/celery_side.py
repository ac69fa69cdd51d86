"""The other side of the wire: a Celery application on the same broker and queue."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.apps.traces import trace

app = Celery(
    "celery_side", broker=os.environ["TASKQ_BROKER"], backend=os.environ.get("CELERY_SIDE_BACKEND"), set_as_current=False
)
app.conf.task_default_queue = os.environ["TASKQ_DEFAULT_QUEUE"]
app.conf.worker_hijack_root_logger = False


@app.task(name="tests.celery.echo", bind=True)  # type: ignore[untyped-decorator]  # Celery ships no types
def echo(self: Any, *args: Any, **kwargs: Any) -> None:
    trace("celery", id=self.request.id, args=repr(list(args)), kwargs=repr(kwargs), retries=self.request.retries)


@app.task(name="tests.celery.fail")  # type: ignore[untyped-decorator]
def fail() -> None:
    raise ValueError("no")
