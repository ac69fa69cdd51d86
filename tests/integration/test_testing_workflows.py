"""Workflows in tests of applications: chains, groups and chords run through the same code as single calls."""

from __future__ import annotations

import pytest

from taskq import Attempt, TaskQ, chord, group
from taskq.testing import assert_idempotent, worker
from tests.support import PATIENCE

app = TaskQ("shop", broker="amqp://nobody.invalid//", backend="sqlite:////nowhere/results.db")
told: list[str] = []
sums: list[int] = []


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="late", bind=True, autoretry_for=(OSError,), default_retry_delay=3600)
def late(attempt: Attempt, value: int) -> int:
    if not attempt.retries:
        raise OSError
    return value


@app.task(name="total")
def total(values: list[int]) -> int:
    sums.append(sum(values))
    return sum(values)


@app.task(name="fail")
def fail() -> int:
    raise LookupError("no such order")


@app.task(name="tell")
def tell(task_id: str) -> None:
    told.append(task_id)


@app.task(name="begin")
def begin(numbers: list[int]) -> None:
    chord([add.s(number, 1) for number in numbers])(total.s())


def test_chains_and_chords_run_to_their_end() -> None:
    with worker(app, background=False) as one:
        chain = (add.s(1, 2) | late.s() | add.s(4)).delay()
        body = chord([late.s(1), add.s(2, 3), late.s(4)])(total.s())
        members = group(add.s(n, n) for n in range(3)).delay()
        assert {run.event for run in one.run()} == {"succeeded", "retried"}
        assert chain.get(timeout=0) == 7
        assert body.get(timeout=0) == 10
        assert members.get(timeout=0) == [0, 2, 4]


def test_a_member_that_fails_fails_its_chord() -> None:
    told.clear()
    with worker(app):
        body = chord([add.s(1, 2), fail.s()])(total.s().on_error(tell.s()))
        with pytest.raises(Exception, match="no such order"):
            body.get(timeout=PATIENCE)
    assert told == [body.id]


def test_a_task_that_begins_a_chord_twice_is_found_out() -> None:
    with pytest.raises(AssertionError, match=r"after it ran and before its result was stored, check\(\) gave \[5, 5\]"):
        assert_idempotent(begin, [1, 2], check=lambda: sums, reset=sums.clear)
