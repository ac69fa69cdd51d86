"""A crash before every step of a call: harmless tasks pass, and others are found out with the moment and the difference."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from taskq import Attempt, Reject, TaskQ, task
from taskq.errors import ConfigurationError, NotBound
from taskq.testing import assert_idempotent, in_memory

BEFORE = "before it ran"
RAN = "after it ran and before its result was stored"
STORED = "after its result was stored and before its message was acked"

app = TaskQ("shop", broker="amqp://nobody.invalid//", queue_type="classic")
orders: dict[str, int] = {}
letters: list[str] = []
seen: list[Attempt] = []


def forget() -> None:
    orders.clear()
    letters.clear()
    seen.clear()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    forget()
    yield
    forget()


@app.task(name="put", bind=True, ignore_result=True)
def put(attempt: Attempt, order: str, count: int) -> int:
    seen.append(attempt)
    orders[order] = count
    return count


@app.task(name="add")
def add(order: str, count: int) -> None:
    orders[order] = orders.get(order, 0) + count


@app.task(name="trusting", bind=True)
def trusting(attempt: Attempt, order: str) -> None:
    """Believes that what comes again has run."""
    if not attempt.redelivered:
        orders[order] = 1


@app.task(name="fickle")
def fickle() -> str:
    return str(uuid.uuid4())


@app.task(name="refusing")
def refusing(order: str) -> None:
    if order in orders:
        raise KeyError(order)
    orders[order] = 1


@app.task(name="patient", bind=True, autoretry_for=(OSError,), default_retry_delay=3600)
def patient(attempt: Attempt, order: str) -> str:
    if attempt.retries < 1:
        raise OSError
    orders[order] = 1
    return order


@app.task(name="send")
def send(letter: str) -> None:
    letters.append(letter)


@app.task(name="confirm", bind=True)
def confirm(attempt: Attempt, order: str) -> None:
    """Harmless by itself, but what it sends goes out each time."""
    orders[order] = 1
    send.delay(order)


@app.task(name="careful", bind=True)
def careful(attempt: Attempt, order: str) -> None:
    """Knows by its id what it has done."""
    if attempt.id not in letters:
        letters.append(attempt.id)
        orders[order] = orders.get(order, 0) + 1


def test_a_task_that_may_run_again_passes_every_crash() -> None:
    assert assert_idempotent(put, "a", count=3, check=lambda: orders, reset=forget) == (BEFORE, RAN, STORED)
    assert [attempt.redelivered for attempt in seen] == [False, True], "it came back through the broker"
    assert len({attempt.id for attempt in seen}) == 1
    assert seen[0].queue == "default"


def test_without_a_reset_the_runs_meet_what_the_earlier_ones_left() -> None:
    assert_idempotent(put, "a", 3, check=lambda: orders)
    assert [attempt.redelivered for attempt in seen] == [False, True, False, True, False, True], (
        "the crash before it ran is no run"
    )
    assert len({attempt.id for attempt in seen}) == 1, "it is the same call"
    assert_idempotent(careful, "b", check=lambda: orders)
    assert_idempotent(careful, "b", check=lambda: orders, reset=forget)
    with pytest.raises(AssertionError, match=r"found what the earlier ones had left, unless you give reset="):
        assert_idempotent(add, "c", 1, check=lambda: orders)


def difference(call: Any, *args: Any) -> str:
    with pytest.raises(AssertionError) as found:
        assert_idempotent(call, *args, check=lambda: (orders, letters), reset=forget)
    return str(found.value)


def test_the_failure_names_the_moment_and_the_difference() -> None:
    assert difference(add, "a", 2) == (
        f"task 'add' is not idempotent: with a crash {RAN}, check() gave ({{'a': 4}}, []), and undisturbed ({{'a': 2}}, [])"
    )
    assert difference(trusting, "a").startswith(
        f"task 'trusting' is not idempotent: with a crash {BEFORE}, check() gave ({{}}, [])"
    )
    assert f"with a crash {RAN}, it failed: KeyError('a')" in difference(refusing, "a")
    assert f"with a crash {RAN}, check() gave ({{'a': 1}}, ['a', 'a'])" in difference(confirm, "a")
    assert f"task 'fickle' is not idempotent: with a crash {BEFORE}, it returned '" in difference(fickle)


def test_retries_are_steps_of_the_call_too() -> None:
    assert assert_idempotent(patient, "a", check=lambda: orders, reset=forget) == (
        BEFORE,
        "after it ran and before its follow-ups were published",
        "after its follow-ups were published and before its message was acked",
        "after its message was acked and before it ran",
        RAN,
        STORED,
    )


def test_a_task_that_fails_undisturbed_fails_as_it_does() -> None:
    orders["a"] = 1
    with pytest.raises(KeyError, match="a"):
        assert_idempotent(refusing, "a", check=lambda: orders)
    with pytest.raises(TypeError, match="missing a required argument: 'count'"):
        assert_idempotent(put, "a", check=lambda: orders)


def test_what_makes_no_sense_is_refused() -> None:
    @app.task(name="once", acks_late=False)
    def once() -> None: ...

    @task(name="loose")
    def loose() -> None: ...

    with pytest.raises(ConfigurationError, match="'once' has acks_late=False: it never runs twice"):
        assert_idempotent(once, check=dict)
    with pytest.raises(NotBound, match="'loose' belongs to no app"):
        assert_idempotent(loose, check=dict)


def test_an_app_that_is_in_memory_keeps_what_it_has_there() -> None:
    with in_memory(app):
        put.delay("b", 1)
        assert_idempotent(put, "a", 3, check=lambda: orders)
        assert app.publisher.depth("default") == 1


def test_messages_of_others_do_not_take_steps() -> None:
    def send_and_reject() -> None:
        send.delay("x")
        app.send_task("rejecting")

    def rejecting() -> None:
        raise Reject("as it always does")

    app.task(name="rejecting")(rejecting)
    both = app.task(name="both")(send_and_reject)
    assert assert_idempotent(both, check=lambda: set(letters), reset=forget) == (BEFORE, RAN, STORED)
