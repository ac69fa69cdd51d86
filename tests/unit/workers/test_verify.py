"""What a task raises and what follows it, however odd, comes to an outcome that can be reported and sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from taskq import Retry, TaskQ, config
from taskq.broker import checker, decoder
from taskq.broker.amqp.properties import encode
from taskq.broker.interface import Delivery
from taskq.config import Settings
from taskq.errors import MessageError, Reject
from taskq.message import CRASHES, HISTORY
from taskq.workers.execute import Executor
from taskq.workers.outcome import Outcome
from taskq.workers.pipe import DONE, pack_report, unpack_reports

FRAME = 131_072 - 8
NO_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def amqp(**settings: Any) -> Settings:
    return config.load({"broker": "amqp://nowhere.invalid//", "backend": "redis://nowhere.invalid", **settings}, environment={})


def executor(body: Callable[[], Any], settings: Settings, **options: Any) -> Executor:
    app = TaskQ("unit", broker="amqp://nowhere.invalid//", backend="redis://nowhere.invalid")

    def task() -> Any:
        return body()

    # Which overload it is depends on the options.
    decorate: Any = app.task(name="task", **options)
    decorate(task)
    return Executor(app.tasks, settings, decoder(settings), "1@host")


def delivery(embed: Any = NO_EMBED, **headers: Any) -> Delivery:
    known = {"task": "task", "id": "id-1", "root_id": "id-1", "parent_id": None, "retries": 0, **headers}
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": known,
        "correlation_id": "id-1",
    }
    return Delivery("mail", 1, encode(properties), json.dumps([[], {}, embed]).encode(), False)


def step(task: str = "next", **options: Any) -> dict[str, Any]:
    return {"task": task, "args": [], "kwargs": {}, "options": options, "subtask_type": None, "immutable": False}


def sound(outcome: Outcome | None, settings: Settings) -> Outcome:
    """The outcome, as the supervisor reads it and the broker would carry it."""
    assert outcome is not None
    reports, rest = unpack_reports(pack_report(1, DONE, 5, outcome))
    assert (rest, reports[0][3]) == (b"", outcome)
    check = checker(settings)
    for publication in outcome.publish:
        check(publication)
        assert len(encode({"application_headers": publication.message.headers})) <= FRAME
    return outcome


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


class BrokenRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class BrokenText(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


text = st.text(st.characters(exclude_categories=())) | st.integers(0, 40_000).map(lambda n: "错\udce9" * (n // 2))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary() | st.builds(object) | st.builds(BrokenRepr),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3) | st.tuples(inner),
    max_leaves=5,
)
kinds = st.sampled_from([Exception, ValueError, KeyError, OSError, BrokenRepr, BrokenText, SystemExit, Reject, Retry])


def made(kind: type[BaseException], args: list[Any]) -> BaseException:
    try:
        return kind(*args)
    except Exception as refused:  # noqa: BLE001  # it is as good an exception as any
        return refused


def grouped(inner: BaseException, depth: int) -> BaseException:
    for _ in range(depth):
        inner = BaseExceptionGroup("group", [inner])
    return inner


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


leaves = st.builds(made, kinds, st.lists(values, max_size=3))
errors = st.recursive(
    leaves,
    lambda inner: st.builds(grouped, inner, st.sampled_from([1, 3, 500])) | st.builds(caused, leaves, inner),
    max_leaves=4,
)


@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # texts of 180,000 bytes
@given(error=errors, retries=st.integers(0, 4), retried=st.booleans())
def test_whatever_is_raised_is_an_outcome_that_can_take_effect(error: BaseException, retries: int, retried: bool) -> None:
    settings = amqp()
    execute = executor(raising(error), settings, autoretry_for=(BaseException,) if retried else ())
    embed = {**NO_EMBED, "errbacks": [step("errback")], "chain": [step()]}
    outcome = sound(execute(delivery(embed, retries=retries)), settings)
    assert outcome.event in ("failed", "retried", "dead-lettered", "rejected")
    if isinstance(error, BrokenRepr | BrokenText) and not retried and not retries:
        assert outcome.record is not None
        assert json.loads(outcome.record.meta)["result"]["exc_type"] == type(error).__name__


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "x" * 300},
        {"queue": "a.*.b", "countdown": 5},
        {"queue": 5},
        {"countdown": 1e12},
        {"headers": {"x": "h" * 140_000}},
        {"priority": 5},
    ],
    ids=str,
)
def test_a_follow_up_that_cannot_be_sent_is_the_tasks_dead_letter(options: dict[str, Any]) -> None:
    settings, runs = amqp(), list[int]()
    execute = executor(lambda: runs.append(1), settings, autoretry_for=(Exception,))
    outcome = sound(execute(delivery({**NO_EMBED, "callbacks": [step(**options)]})), settings)
    headers = outcome.publish[0].message.headers
    assert (outcome.event, headers["tq-dead-reason"], runs) == ("dead-lettered", "follow-up refused", [1])
    assert headers["tq-dead-detail"].startswith("a follow-up cannot be sent: ")


def test_a_follow_up_over_the_size_of_messages_fails_the_workflow() -> None:
    settings = amqp(max_message_bytes=1000)
    execute = executor(lambda: "x" * 2000, settings)
    outcome = sound(execute(delivery({**NO_EMBED, "chain": [step(task_id="second")]})), settings)
    assert "over max_message_bytes=1000" in outcome.publish[0].message.headers["tq-dead-detail"]
    assert outcome.flow is not None
    assert [end.id for end in outcome.flow.records] == ["second"], "the rest of the chain has failed"


def test_an_errback_that_cannot_be_sent_leaves_the_tasks_own_failure() -> None:
    settings = amqp()
    execute = executor(raising(ValueError("mine")), settings)
    embed = {**NO_EMBED, "errbacks": [step("bad", headers={"x": "h" * 140_000}), step("good")]}
    outcome = sound(execute(delivery(embed)), settings)
    assert [publication.message.headers["task"] for publication in outcome.publish] == ["task", "good"]
    assert outcome.record is not None
    assert json.loads(outcome.record.meta)["result"]["exc_message"] == ["mine"]


def test_what_a_message_remembers_gives_way_to_its_own_headers() -> None:
    settings = amqp()
    execute = executor(raising(ValueError("错" * 100_000)), settings, autoretry_for=(ValueError,), max_retries=25)
    history = [{"worker": "w", "started": 1.0, "seconds": 1.0, "ended": "错" * 300}] * 20
    outcome = sound(execute(delivery(x="h" * 130_000)), settings)
    assert (outcome.event, HISTORY in outcome.publish[0].message.headers) == ("retried", False)
    outcome = sound(execute(delivery(retries=24, **{HISTORY: history})), settings)
    assert (outcome.event, len(outcome.publish[0].message.headers[HISTORY])) == ("retried", 20)
    outcome = sound(execute(delivery(retries=25, x="h" * 129_000)), settings)
    assert (outcome.event, outcome.publish[0].message.headers["x"]) == ("dead-lettered", "h" * 129_000)


def test_headers_that_leave_no_room_at_all_are_left_out_of_the_dead_letter() -> None:
    settings = amqp()
    execute = executor(raising(Reject("no")), settings)
    outcome = sound(execute(delivery(x="h" * 130_850)), settings)
    letter = outcome.publish[0].message
    assert (outcome.event, letter.headers["id"], "x" in letter.headers) == ("dead-lettered", "id-1", False)
    assert letter.body == json.dumps([[], {}, NO_EMBED]).encode()


def test_a_copy_keeps_a_priority_that_the_queue_does_not_have() -> None:
    settings = amqp()
    execute = executor(raising(ValueError("x")), settings, autoretry_for=(ValueError,))
    arrived = delivery()
    properties = encode({"content_type": "application/json", "priority": 5, "application_headers": {"task": "task", "id": "a"}})
    outcome = execute(Delivery("mail", 1, properties, arrived.body, False))
    assert outcome is not None
    assert (outcome.event, outcome.publish[0].message.priority) == ("retried", 5)


@pytest.mark.parametrize(("header", "value"), [("root_id", 5), ("parent_id", [1]), ("group_index", True), ("group_index", "1")])
def test_headers_of_another_type_are_undecodable(header: str, value: Any) -> None:
    settings = amqp()
    outcome = sound(executor(lambda: 1, settings)(delivery(**{header: value})), settings)
    assert outcome.publish[0].message.headers["tq-dead-reason"] == "undecodable"


def test_a_fault_of_ours_costs_one_task() -> None:
    settings = amqp()
    execute = executor(lambda: 1, settings)

    class Lost:
        def __getattr__(self, name: str) -> Any:
            raise RecursionError(name)

    execute._route = Lost()  # type: ignore[assignment]
    execute._settings = Lost()  # type: ignore[assignment]
    outcome = sound(execute(delivery({**NO_EMBED, "callbacks": [step()]}, **{CRASHES: 1})), settings)
    assert outcome.event in ("failed", "dead-lettered")


def test_an_outcome_that_cannot_be_reported_is_a_dead_letter() -> None:
    settings = amqp()
    execute = executor(lambda: 1, settings)
    outcome = sound(execute.unreportable(delivery(), MessageError("half a character")), settings)
    assert outcome.publish[0].message.headers["tq-dead-reason"] == "internal error"
