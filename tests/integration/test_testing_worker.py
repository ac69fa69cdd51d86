"""Workers of tests that run tasks when they are told to: what is real about them, and how time passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskq import Attempt, Reject, TaskQ
from taskq.errors import (
    ArgumentRefused,
    ConfigurationError,
    DeadLettered,
    ResultsDisabled,
    ResultTimeout,
    TaskExpired,
    TaskRevoked,
)
from taskq.testing import LimitNotEnforced, Unending, Worker, in_memory, worker

HOUR = 3600.0
app = TaskQ("shop", broker="amqp://nobody.invalid//", backend="sqlite:////nowhere/results.db", result_ttl=2 * HOUR)
seen: list[Any] = []


@app.task(name="echo")
def echo(*values: Any) -> Any:
    seen.append((threading.get_ident(), values))
    return values


@app.task(name="fail")
def fail(text: str) -> None:
    raise LookupError(text)


@app.task(name="flaky", bind=True, autoretry_for=(OSError,), max_retries=3, default_retry_delay=HOUR)
def flaky(attempt: Attempt, failures: int) -> int:
    seen.append((attempt.retries, attempt.headers["eta"]))
    if attempt.retries < failures:
        raise OSError(attempt.retries)
    return attempt.retries


@app.task(name="again", bind=True)
def again(attempt: Attempt, delay: float) -> None:
    again.apply_async((delay,), countdown=delay)


@app.task(name="once", acks_late=False)
def once(key: str) -> str:
    seen.append(app.result(key).status)
    return key


@app.task(name="follow", queue="mail")
def follow(depth: int) -> None:
    seen.append(depth)
    if depth:
        follow.delay(depth - 1)


@app.task(name="fatal")
def fatal(kind: str) -> None:
    raise {"interrupt": KeyboardInterrupt(), "exit": SystemExit(3)}[kind]


@app.task(name="slow", time_limit=0.02, soft_time_limit=0.01)
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@app.task(name="nested")
def nested() -> None:
    [one] = holder
    one.run()


holder: list[Worker] = []


@pytest.fixture
def shop() -> Iterator[Worker]:
    seen.clear()
    with worker(app, background=False) as made:
        yield made


def events(one: Worker) -> list[str]:
    return [run.event for run in one.run()]


def test_a_call_runs_when_it_is_told_to_in_the_same_thread(shop: Worker) -> None:
    result = echo.delay(1, "x")
    assert (result.status, seen) == ("PENDING", [])
    [run] = shop.run()
    assert (run.event, run.task, run.id, run.error) == ("succeeded", "echo", result.id, None)
    assert seen == [(threading.get_ident(), (1, "x"))]
    assert (result.get(timeout=0), result.status) == ([1, "x"], "SUCCESS")
    assert shop.run() == []


def test_arguments_and_results_go_through_json(shop: Worker) -> None:
    with pytest.raises(ArgumentRefused, match="set"):
        echo.delay({1, 2})
    now = datetime.now(UTC)
    faithful = echo.delay(now, b"\x00", {"a": [1.5, None]})
    dishonest = echo.delay(1)
    shop.run()
    assert faithful.get(timeout=0) == [now, b"\x00", {"a": [1.5, None]}]
    assert dishonest.get(timeout=0) == [1], "a tuple comes back as a list"


def test_an_error_is_raised_where_it_is_asked_for(shop: Worker) -> None:
    result = fail.delay("no such order")
    [run] = shop.run()
    assert run.event == "failed"
    assert isinstance(run.error, LookupError)
    assert run.error.__traceback__ is not None
    assert run.error.__traceback__.tb_frame.f_code is fail.function.__code__, "the real one, from the task's own frame on"
    with pytest.raises(LookupError, match="no such order"):
        result.get(timeout=0)
    fail.delay("directly")
    with pytest.raises(LookupError, match="directly"):
        shop.run(raises=True)
    echo.delay()
    assert len(shop.run(raises=True)) == 1


def test_an_error_that_is_being_handled_outside_is_not_the_tasks(shop: Worker) -> None:
    echo.delay()
    try:
        fail("outside")
    except LookupError:
        [run] = shop.run()
    assert (run.event, run.error) == ("succeeded", None)


def test_hours_pass_at_once(shop: Worker) -> None:
    started = time.monotonic()
    result = flaky.delay(3)
    assert events(shop) == ["retried", "retried", "retried", "succeeded"]
    assert result.get(timeout=0) == 3
    assert time.monotonic() - started < HOUR / 100
    for retries, eta in seen[1:]:
        assert retries > 0
        assert datetime.fromisoformat(eta).timestamp() <= time.time() + 0.1, "a task that runs is due, by every clock"


def test_time_passes_as_far_as_it_is_told_to(shop: Worker) -> None:
    result = flaky.delay(2)
    assert [run.event for run in shop.advance(0)] == ["retried"]
    assert shop.advance(HOUR - 60) == []
    assert [run.event for run in shop.advance(60)] == ["retried"]
    assert result.status == "RETRY"
    assert [run.event for run in shop.advance(HOUR)] == ["succeeded"]
    assert [run.event for run in shop.advance(10 * HOUR)] == []


def test_several_delays_that_end_within_the_time_run_each_in_its_turn(shop: Worker) -> None:
    for delay in (30, 10, 20):
        echo.apply_async((delay,), countdown=delay)
    flaky.delay(1)
    shop.advance(25)
    assert [values for _, values in seen] == [None, (10,), (20,)]
    shop.advance(HOUR)
    assert [values for _, values in seen][3] == (30,)
    assert seen[4][0] == 1


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_time_does_not_pass_backwards_or_for_ever(shop: Worker, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds from 0"):
        shop.advance(seconds)


def test_moments_years_ahead_come_too(shop: Worker) -> None:
    result = echo.apply_async((1,), eta=datetime.now(UTC) + timedelta(days=400))
    shop.advance(399 * 86_400)
    assert result.status == "PENDING"
    shop.run()
    assert result.get(timeout=0) == [1]


def test_a_call_expires_as_time_passes(shop: Worker) -> None:
    late = echo.apply_async((1,), countdown=HOUR, expires=60)
    in_time = echo.apply_async((2,), countdown=60, expires=HOUR)
    shop.run()
    with pytest.raises(TaskExpired):
        late.get(timeout=0)
    assert in_time.get(timeout=0) == [2]


def test_results_expire_as_time_passes(shop: Worker) -> None:
    result = echo.delay(1)
    shop.run()
    shop.advance(HOUR)
    assert app.result(result.id).ready()
    shop.advance(HOUR)
    assert not app.result(result.id).ready()


def test_exhausted_retries_are_dead_letters_that_can_be_replayed(shop: Worker) -> None:
    result = flaky.delay(9)
    assert events(shop) == ["retried", "retried", "retried", "dead-lettered"]
    with pytest.raises(OSError, match="3"):
        result.get(timeout=0)
    [letter] = app.dead_letters(reason="retries exhausted")
    assert (letter.id, letter.retries) == (result.id, 3)
    shop.advance(10 * HOUR)
    assert list(app.dead_letters(since=datetime.now(UTC) - timedelta(hours=9))) == []
    assert app.replay() == 1
    assert shop.run()[-1].reason is not None


def test_a_task_that_nobody_knows_is_a_dead_letter_in_the_end(shop: Worker) -> None:
    app.send_task("unheard.of")
    runs = shop.run()
    assert {run.event for run in runs[:-1]} == {"delayed"}
    assert runs[-1].event == "dead-lettered"
    app.send_task("unheard.of")
    with pytest.raises(DeadLettered, match="unknown task: no worker of queue 'default' knew task"):
        shop.run(raises=True)


def test_orders_are_obeyed(shop: Worker) -> None:
    revoked, paused = echo.delay(1), follow.delay(0)
    revoked.revoke()
    app.pause("mail")
    assert events(shop) == ["revoked"]
    with pytest.raises(TaskRevoked):
        revoked.get(timeout=0)
    assert paused.status == "PENDING"
    app.resume("mail")
    assert events(shop) == ["succeeded"]


def test_what_runs_at_most_once_is_recorded_first(shop: Worker) -> None:
    result = once.apply_async(("id-1",), task_id="id-1")
    shop.run()
    assert (seen, result.get(timeout=0)) == (["STARTED"], "id-1")


def test_follow_ups_and_tasks_of_later_run_too(shop: Worker) -> None:
    follow.delay(2)
    assert events(shop) == ["succeeded"] * 3
    assert seen == [2, 1, 0]
    made = TaskQ("later")
    with worker(made, background=False) as one:
        one.run()
        late = made.task(name="late", queue="late")(lambda: 7).delay()
        one.run()
        assert late.get(timeout=0) == 7


def test_queues_that_the_app_does_not_name_are_somebody_elses(shop: Worker) -> None:
    result = echo.apply_async((1,), queue="elsewhere")
    assert shop.run() == []
    with pytest.raises(ResultTimeout):
        result.get(timeout=0)
    with worker(app, queues=["elsewhere"], background=False) as other:
        assert [run.id for run in other.run()] == [result.id]


@pytest.mark.parametrize("delay", [0.0, HOUR])
def test_what_never_ends_is_given_up(shop: Worker, delay: float) -> None:
    again.delay(delay)
    with pytest.raises(Unending, match="not done after 50 messages; the last ones: again succeeded"):
        shop.run(limit=50)


def test_a_task_that_rejects_its_message_for_ever_is_given_up(shop: Worker) -> None:
    def reject() -> None:
        raise Reject("not now", requeue=True)

    with worker(TaskQ("stubborn"), background=False) as one:
        one.app.task(name="reject")(reject).delay()
        with pytest.raises(Unending, match="reject rejected"):
            one.run(limit=20)


def test_an_interruption_is_for_whoever_runs_the_test(shop: Worker) -> None:
    interrupted = fatal.delay("interrupt")
    with pytest.raises(KeyboardInterrupt):
        shop.run()
    assert interrupted.status == "FAILURE"
    assert shop.run()[0].id == interrupted.id
    fatal.delay("exit")
    assert events(shop) == ["failed"], "in a worker, that is a task's failure"


def test_limits_are_not_enforced_but_an_overrun_is_told(shop: Worker) -> None:
    result = slow.delay(0.015)
    with pytest.warns(LimitNotEnforced, match="past its soft_time_limit"):
        shop.run()
    assert result.get(timeout=0) == "done"
    slow.delay(0.025)
    with pytest.warns(LimitNotEnforced, match="past its time_limit"):
        shop.run()


def test_a_task_cannot_run_the_worker_that_runs_it(shop: Worker) -> None:
    holder[:] = [shop]
    nested.delay()
    with pytest.raises(RuntimeError, match="runs one task at a time"):
        shop.run(raises=True)


def test_the_app_is_as_it_was_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_MAX_CRASHES", "7")
    made = TaskQ("kept", broker=f"sqlite:///{tmp_path}/kept.db", default_queue="mine")
    made.configure({"publish_timeout": 1.5})
    before, publisher = made.settings, made.publisher

    def failing() -> None:
        with in_memory(made) as inside:
            assert inside is made
            assert made.settings.broker != before.broker
            kept = (made.settings.default_queue, made.settings.max_crashes, made.settings.publish_timeout)
            assert kept == ("mine", 7, 1.5)
            outer = made.settings.broker
            with in_memory(made):
                assert made.settings.broker != outer
            assert made.settings.broker == outer
            made.send_task("anything")
            folder = Path(outer.removeprefix("sqlite:///")).parent
            assert folder.is_dir()
            raise LookupError(folder)

    with pytest.raises(LookupError) as failed:
        failing()
    assert made.settings is before
    assert made.publisher is publisher
    assert list(tmp_path.iterdir()) == [], "its own broker was never touched"
    assert not failed.value.args[0].exists()


def test_an_app_without_results_has_none_in_tests_either() -> None:
    made = TaskQ("silent", broker="amqp://nobody.invalid//")
    with worker(made, background=False) as one:
        result = made.task(name="answer")(lambda: 42).delay()
        assert events(one) == ["succeeded"]
        with pytest.raises(ResultsDisabled):
            result.get()


def test_a_worker_joins_an_app_that_is_in_memory_already() -> None:
    with in_memory(app):
        result = echo.delay(1)
        with worker(app, background=False) as one:
            one.run()
        assert result.get(timeout=0) == [1]
        with pytest.raises(ConfigurationError, match="unknown filter"):
            app.purge_dead(resaon="x")  # type: ignore[call-arg]
