"""Right calls, with the types that mypy and pyright must find. Only type-checked, never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import assert_type

from taskq import AsyncResult, Attempt, Signature, Task, TaskQ, task

app = TaskQ("shop", broker="sqlite:////tmp/shop.db", backend="off", max_crashes=5)


@app.task
def add(a: int, b: int = 1) -> int:
    return a + b


@app.task(name="shop.mail", queue="mail", priority=9, expires=60.0, ignore_result=True)
def send_mail(to: str, *, subject: str) -> None: ...


@app.task(bind=True, queue="mail")
def report(attempt: Attempt, day: str) -> list[str]:
    return [attempt.id, day]


@task
def reusable(text: str) -> bytes:
    return text.encode()


@task(bind=True)
def reusable_bound(attempt: Attempt, text: str) -> str:
    return f"{attempt.number} {text}"


@task(queue="slow")
def reusable_with_options(*numbers: float) -> float:
    return sum(numbers)


assert_type(add(1), int)
assert_type(add.delay(1, b=2), AsyncResult[int])
assert_type(add.delay(1).get(timeout=10), int)
assert_type(add.s(1, 2), Signature[int])
assert_type(add.s(1).set(countdown=5).delay(), AsyncResult[int])
assert_type(add.apply_async((1, 2), countdown=60, priority=5), AsyncResult[int])
add.apply_async(
    (), {"a": 1}, eta=datetime.now(UTC), expires=10.0, queue="slow", task_id="1", headers={"x": 1}, ignore_result=True
)

send_mail.delay("ann@example.org", subject="hi")
assert_type(report.delay("monday"), AsyncResult[list[str]])
assert_type(report("monday"), list[str])
assert_type(reusable.delay("x"), AsyncResult[bytes])
assert_type(reusable_bound.delay("x").get(), str)
assert_type(reusable_with_options.delay(1, 2.5, 3), AsyncResult[float])

assert_type(app.send_many(add.s(n) for n in range(3)), list[AsyncResult[int]])
assert_type(app.send_many([report.s("monday")])[0].get(), list[str])
app.send_task("other.task", [1], {"b": 2}, queue="other")


def every(signatures: Iterator[Signature[int]]) -> list[int]:
    return [result.get(timeout=1) for result in app.send_many(signatures)]


def takes_any_task(any_task: Task[..., int]) -> str:
    return any_task.name


takes_any_task(add)
