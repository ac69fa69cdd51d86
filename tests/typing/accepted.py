"""Right calls, with the types that mypy and pyright must find. Only type-checked, never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import assert_type

from taskq import (
    AsyncResult,
    Attempt,
    Chain,
    DeadLetter,
    GroupResult,
    Ignore,
    Reject,
    Retry,
    Signature,
    Task,
    TaskQ,
    chord,
    group,
    task,
)
from taskq.attempt import Past
from taskq.retry import RetryPolicy
from taskq.signature import Partial
from taskq.testing import Run, assert_idempotent, in_memory, worker

app = TaskQ("shop", broker="sqlite:////tmp/shop.db", backend="off", max_crashes=5)


@app.task
def add(a: int, b: int = 1) -> int:
    return a + b


@app.task(name="shop.mail", queue="mail", priority=9, expires=timedelta(minutes=1), time_limit=60.0, ignore_result=True)
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


@app.task
def total(numbers: list[int]) -> float:
    return sum(numbers) / 1


@app.task(
    bind=True, max_retries=5, autoretry_for=(OSError, TimeoutError), retry_backoff=True, time_limit=30, soft_time_limit=2.5
)
def fetch(self: Attempt, url: str) -> int:
    if url == "now":
        raise self.retry(countdown=1.5)
    try:
        return len(url)
    except KeyError as error:
        raise self.retry(exc=error, max_retries=None) from error
    except ValueError as error:
        # Nothing is missing after it: it never returns.
        self.retry(error, eta=datetime.now(UTC))


@app.task(bind=True, acks_late=False, on_worker_lost="fail", on_timeout="fail", retry_on=lambda error: error.args == ())
def once(self: Attempt) -> None:
    assert_type(self.retry(throw=False), Retry)
    assert_type(self.history, tuple[Past, ...])
    if self.deliveries > 1:
        raise Reject("twice", requeue=True)
    if self.crashes:
        raise Reject(ValueError())
    raise Ignore


@task(max_retries=None, dont_autoretry_for=(KeyError,), default_retry_delay=10, retry_backoff=0.5, retry_backoff_max=60)
def patient(text: str) -> str:
    return text


assert_type(fetch.delay("x"), AsyncResult[int])
assert_type(fetch.retry_policy, RetryPolicy)
assert_type(once.time_limit, float | None)
assert_type(patient.apply_async(("x",), time_limit=5, soft_time_limit=2.5), AsyncResult[str])

assert_type(add(1), int)
assert_type(add.delay(1, b=2), AsyncResult[int])
assert_type(add.delay(1).get(timeout=10), int)
assert_type(add.s(1, 2), Signature[int])
assert_type(add.s(1).set(countdown=5).delay(), AsyncResult[int])
assert_type(add.apply_async((1, 2), countdown=60, priority=5), AsyncResult[int])
add.apply_async(
    (), {"a": 1}, eta=datetime.now(UTC), expires=10.0, queue="slow", task_id="1", headers={"x": 1}, ignore_result=True
)

add.apply_async((1, 2), countdown=timedelta(minutes=1), expires=timedelta(hours=1), time_limit=timedelta(seconds=5))
add.s(1).set(countdown=timedelta(minutes=1), soft_time_limit=timedelta(seconds=5), expires=datetime.now(UTC))

send_mail.delay("ann@example.org", subject="hi")
assert_type(report.delay("monday"), AsyncResult[list[str]])
assert_type(report("monday"), list[str])
assert_type(reusable.delay("x"), AsyncResult[bytes])
assert_type(reusable_bound.delay("x").get(), str)
assert_type(reusable_with_options.delay(1, 2.5, 3), AsyncResult[float])

assert_type(app.send_many(add.s(n) for n in range(3)), list[AsyncResult[int]])
assert_type(app.send_many([report.s("monday")])[0].get(), list[str])
app.send_task("other.task", [1], {"b": 2}, queue="other").revoke(terminate=True)

assert_type(app.dead_letters("mail", task="shop.mail"), Iterator[DeadLetter])
assert_type(app.replay(reason="crashed", since=datetime.now(UTC), rate=10), int)
assert_type(app.purge_dead("mail", ids=["1", "2"], dry_run=True), int)
assert_type(app.paused(), frozenset[str])


def every(signatures: Iterator[Signature[int]]) -> list[int]:
    return [result.get(timeout=1) for result in app.send_many(signatures)]


def takes_any_task(any_task: Task[..., int]) -> str:
    return any_task.name


takes_any_task(add)

# Workflows keep the type of what they end with.
assert_type(add.s(), Partial[int])
assert_type(add.si(1, 2), Signature[int])
assert_type((add.s(1, 2) | report.si("monday")).delay(), AsyncResult[list[str]])
assert_type((add.s(1, 2) | add.s(3) | total.s()).delay().get(), float)
assert_type(group(add.s(n, n) for n in range(3)).delay(), GroupResult[int])
assert_type(group(add.s(1, 2), add.s(3, 4)).delay().get(timeout=5), list[int])
assert_type(chord([add.s(1, 2)], total.s()).apply_async(countdown=5).get(), float)
assert_type(chord([add.s(1, 2)])(total.s()), AsyncResult[float])
assert_type(group(add.s(1, 2)) | total.s(), Chain[float])
assert_type(add.s(1, 2).on_error(report.s()).delay(), AsyncResult[int])
assert_type(add.map([1, 2]).delay().get(), list[int])
assert_type(add.chunks([(1, 2)], 10).delay().get(), list[list[int]])
with in_memory(app) as inside, worker(inside, queues=["slow"], background=False) as runner:
    assert_type(inside, TaskQ)
    assert_type(runner.run(raises=True), list[Run])
    assert_type(runner.advance(3600)[0].error, BaseException | None)
assert_type(assert_idempotent(add, 1, b=2, check=list, reset=dict), tuple[str, ...])
