"""An application whose tasks take whatever they are given, for messages that nobody should have sent (``tests.hostile``)."""

from __future__ import annotations

from typing import Any

from taskq import Attempt, Reject, TaskQ

app = TaskQ("hostile", unknown_task_ttl=0.0, max_message_bytes=100_000)


@app.task(name="add")
def add(*numbers: Any, **_: Any) -> Any:
    return list(numbers)


@app.task(name="fail", bind=True, max_retries=2)
def fail(attempt: Attempt, *_: Any, **__: Any) -> None:
    raise attempt.retry(exc=ValueError("no"), countdown=0)


@app.task(name="once", acks_late=False)
def once(*numbers: Any, **_: Any) -> Any:
    return list(numbers)


@app.task(name="refuse")
def refuse(*_: Any, **__: Any) -> None:
    raise Reject("no")
