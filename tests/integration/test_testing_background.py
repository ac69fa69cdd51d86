"""Workers of tests that run in a thread of their own, for code that waits for results itself."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskq import Attempt, TaskQ
from taskq.testing import Unending, worker
from tests.support import PATIENCE, eventually

HOUR = 3600.0
app = TaskQ("shop", broker="amqp://nobody.invalid//", backend="sqlite:////nowhere/results.db")
begun, gate = threading.Event(), threading.Event()
seen: list[Any] = []


@app.task(name="add")
def add(a: int, b: int) -> int:
    seen.append(threading.current_thread().name)
    return a + b


@app.task(name="flaky", bind=True, autoretry_for=(OSError,), max_retries=3, default_retry_delay=HOUR)
def flaky(attempt: Attempt, failures: int) -> int:
    if attempt.retries < failures:
        raise OSError(attempt.retries)
    return attempt.retries


@app.task(name="fail", ignore_result=True)
def fail() -> None:
    raise LookupError("no such order")


@app.task(name="again")
def again(delay: float) -> None:
    again.apply_async((delay,), countdown=delay)


@app.task(name="hold")
def hold() -> None:
    begun.set()
    gate.wait(PATIENCE)


@app.task(name="end_the_test")
def end_the_test() -> None:
    pytest.fail("found while the task ran")


def test_code_that_waits_gets_what_it_waits_for() -> None:
    with worker(app):
        assert add.delay(1, 2).get(timeout=PATIENCE) == 3
        assert flaky.delay(3).get(timeout=PATIENCE) == 3
        assert add.apply_async((3, 4), countdown=HOUR).get(timeout=PATIENCE) == 7
        with pytest.raises(OSError, match="3"):
            flaky.delay(9).get(timeout=PATIENCE)


def test_the_block_ends_when_nothing_is_left() -> None:
    seen.clear()
    with worker(app):
        for number in range(20):
            add.apply_async((number, 1), countdown=number * HOUR)
    assert seen == ["taskq-testing"] * 20


def test_without_jumps_time_passes_as_it_does_or_as_it_is_told_to() -> None:
    with worker(app, jump=False) as one:
        soon, late = add.apply_async((1, 2), countdown=0.05), add.apply_async((3, 4), countdown=HOUR)
        assert soon.get(timeout=PATIENCE) == 3
        assert late.status == "PENDING"
        one.advance(HOUR)
        assert late.get(timeout=0) == 7
        seen.clear()
        add.apply_async((5, 6), countdown=HOUR)
    assert seen == [], "what is not due when the block ends is not waited for"


def test_it_says_what_has_been_run() -> None:
    with worker(app) as one:
        result = add.delay(1, 2)
        result.get(timeout=PATIENCE)
        fail.delay()
        with pytest.raises(LookupError, match="no such order"):
            one.run(raises=True)
        assert one.run() == []
        flaky.delay(1)
        assert [run.event for run in one.run()] == ["retried", "succeeded"]


def test_many_threads_call_at_once() -> None:
    with worker(app), ThreadPoolExecutor(8) as threads:
        sums = list(threads.map(lambda number: add.delay(number, number).get(timeout=PATIENCE), range(80)))
    assert sums == [2 * number for number in range(80)]


def test_a_block_that_raises_does_not_wait() -> None:
    before, started = app.settings, time.monotonic()
    with pytest.raises(LookupError, match="mine"), worker(app, jump=False):
        add.apply_async((1, 2), countdown=HOUR)
        raise LookupError("mine")
    assert time.monotonic() - started < PATIENCE
    assert app.settings is before


def test_a_task_that_hangs_does_not_hold_up_the_test() -> None:
    gate.clear()
    with pytest.raises(Unending, match=r"not done within 0\.1 s: a task hangs"), worker(app, timeout=0.1):
        hold.delay()
    begun.clear()
    with pytest.raises(LookupError) as raised, worker(app, timeout=0.1):
        hold.delay()
        assert begun.wait(PATIENCE)
        raise LookupError
    assert raised.value.__notes__ == ["not done within 0.1 s: a task hangs"]
    gate.set()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "taskq-testing"], "the threads end")


@pytest.mark.parametrize("delay", [0.0, HOUR])
def test_tasks_that_send_themselves_again_do_not_hold_up_the_test(delay: float) -> None:
    expected = r"not done within 0\.2 s: the last ones: again succeeded, again succeeded"
    with pytest.raises(Unending, match=expected), worker(app, timeout=0.2):
        again.delay(delay)


def test_what_ends_the_test_inside_a_task_ends_it() -> None:
    with pytest.raises(pytest.fail.Exception, match="found while the task ran"), worker(app):
        end_the_test.delay()
    with pytest.raises(pytest.fail.Exception, match="found while the task ran"), worker(app, jump=False) as one:
        result = end_the_test.delay()
        eventually(lambda: result.ready() or None, "the task has ended")
        with pytest.raises(pytest.fail.Exception):
            eventually(lambda: one.run() and None, "the worker has ended")


def test_a_worker_that_has_ended_with_its_block_says_so() -> None:
    with worker(app) as one:
        pass
    with pytest.raises(RuntimeError, match="ended with its block"):
        one.run()
