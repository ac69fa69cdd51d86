"""The executor on real deliveries, encoded as the SQLite broker encodes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import Attempt, TaskQ, config
from taskq.attempt import current_attempt
from taskq.broker.interface import Delivery
from taskq.broker.sqlite.properties import decode, encode
from taskq.workers.execute import Executor
from taskq.workers.outcome import SUCCEEDED, Outcome

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
seen: list[Any] = []


def add(a: int, b: int) -> int:
    seen.append((a, b))
    return a + b


def fail(text: str) -> None:
    raise ValueError(text, {1})


def leave() -> None:
    raise SystemExit(3)


def interrupt() -> None:
    raise KeyboardInterrupt


def unfaithful() -> Any:
    return {1, 2}


def whoami(attempt: Attempt, key: str) -> str:
    assert current_attempt() is attempt
    seen.append(attempt)
    return key


def executor(**settings: Any) -> Executor:
    app = TaskQ("unit", broker="sqlite:////nowhere/unit.db")
    for function in (add, fail, leave, interrupt, unfaithful):
        app.task(name=function.__name__)(function)
    app.task(name="whoami", bind=True)(whoami)
    chosen = config.load({"broker": "sqlite:////nowhere/unit.db", **settings}, environment={})
    return Executor(app.tasks, chosen, decode, "1@host")


def delivery(
    task: Any = "add",
    args: Any = (1, 2),
    *,
    body: bytes | None = None,
    content_type: str | None = "application/json",
    crashes: int = 0,
    redelivered: bool = False,
    **headers: Any,
) -> Delivery:
    """A delivery of a call, with these headers."""
    known = {"lang": "py", "task": task, "id": "id-1", "root_id": "id-0", "parent_id": "id-0", "retries": 0, **headers}
    envelope = {
        "content-type": content_type,
        "content-encoding": "utf-8",
        "headers": known,
        "properties": {"correlation_id": "id-1"},
    }
    made = Delivery("mail", 1, encode(envelope), json.dumps([args, {}, EMBED]).encode() if body is None else body, redelivered)
    made.crashes = crashes
    return made


def meta(outcome: Outcome) -> dict[str, Any]:
    """The record of the outcome."""
    assert outcome.record is not None
    read: dict[str, Any] = json.loads(outcome.record.meta)
    assert read["status"] == outcome.record.status
    return read


def header(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


def moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_success() -> None:
    outcome = executor()(delivery())
    assert (outcome.event, outcome.publish, outcome.requeue) == ("succeeded", (), False)
    assert (meta(outcome)["result"], meta(outcome)["task_id"], meta(outcome)["parent_id"]) == (3, "id-1", "id-0")


def test_a_success_with_no_result_to_keep_is_the_cheapest_outcome() -> None:
    assert executor()(delivery(ignore_result=True)) is SUCCEEDED
    assert executor(backend="off")(delivery()) is SUCCEEDED


def test_failure() -> None:
    outcome = executor()(delivery("fail", ["no such order"]))
    described = meta(outcome)
    assert (outcome.event, described["status"]) == ("failed", "FAILURE")
    assert described["result"] == {"exc_type": "ValueError", "exc_message": ["no such order", "{1}"], "exc_module": "builtins"}
    assert "raise ValueError(text, {1})" in described["traceback"]
    assert "workers/execute.py" not in described["traceback"]
    assert executor()(delivery("fail", ["x"], ignore_result=True)) == Outcome("failed")


@pytest.mark.parametrize(("task", "exc_type"), [("leave", "SystemExit"), ("interrupt", "KeyboardInterrupt")])
def test_whatever_a_task_raises_is_its_failure(task: str, exc_type: str) -> None:
    assert meta(executor()(delivery(task, [])))["result"]["exc_type"] == exc_type


def test_a_result_that_json_cannot_carry_is_a_failure() -> None:
    described = meta(executor()(delivery("unfaithful", [])))
    assert described["status"] == "FAILURE"
    assert "set" in described["result"]["exc_message"][0]


def test_a_wrong_call_is_a_failure() -> None:
    described = meta(executor()(delivery("add", [1])))
    assert described["result"]["exc_type"] == "TypeError"
    assert "missing 1 required positional argument: 'b'" in described["result"]["exc_message"][0]


def test_a_bound_task_knows_its_attempt() -> None:
    seen.clear()
    executor()(delivery("whoami", ["k"], crashes=2, redelivered=True, retries=1, **header("tq-crashes", 3)))
    (attempt,) = seen
    assert (attempt.id, attempt.task, attempt.queue, attempt.retries, attempt.crashes) == ("id-1", "whoami", "mail", 1, 5)
    assert (attempt.redelivered, attempt.root_id, attempt.parent_id, attempt.number) == (True, "id-0", "id-0", 7)
    assert current_attempt() is None


def test_expired() -> None:
    seen.clear()
    outcome = executor()(delivery(expires=moment(-1)))
    assert (outcome.event, meta(outcome)["status"]) == ("revoked", "REVOKED")
    assert executor()(delivery(expires=moment(-1), ignore_result=True)) == Outcome("revoked")
    assert seen == []
    assert executor()(delivery(expires=moment(60))).event == "succeeded"


def test_what_is_not_due_yet_is_sent_again_with_a_delay() -> None:
    seen.clear()
    outcome = executor()(delivery(eta=moment(60), x="kept"))
    (again,) = outcome.publish
    assert (outcome.event, outcome.record, again.queue) == ("delayed", None, "mail")
    assert 55 < again.delay <= 60
    assert again.message.headers["x"] == "kept"
    assert seen == []
    for due in (-60, 0.05):
        assert executor()(delivery(eta=moment(due))).event == "succeeded"
    assert executor()(delivery(eta=moment(60), expires=moment(-1))).event == "revoked"


def test_a_moment_without_a_zone_is_utc() -> None:
    naive = (datetime.now(UTC) + timedelta(seconds=60)).replace(tzinfo=None).isoformat()
    assert executor()(delivery(eta=naive)).event == "delayed"


def test_an_unknown_task_waits_and_is_dead_lettered_in_the_end() -> None:
    first = executor(unknown_task_ttl=10.0)(delivery("nobody"))
    (again,) = first.publish
    since = again.message.headers["tq-unknown-since"]
    assert (first.event, again.queue) == ("delayed", "mail")
    assert 0 < again.delay <= 5
    assert abs(since - time.time()) < 5
    later = executor(unknown_task_ttl=10.0)(delivery("nobody", **header("tq-unknown-since", since - 5)))
    assert later.publish[0].message.headers["tq-unknown-since"] == since - 5
    last = executor(unknown_task_ttl=10.0)(delivery("nobody", **header("tq-unknown-since", since - 10)))
    assert (last.event, last.publish[0].queue) == ("dead-lettered", "mail.dead")
    assert last.publish[0].message.headers["tq-dead-reason"] == "unknown task"


Change = Callable[[], Delivery]
HOSTILE: dict[str, Change] = {
    "no JSON": lambda: delivery(body=b"[[1, 2"),
    "no call": lambda: delivery(body=b'{"a": 1}'),
    "arguments that are no list": lambda: delivery(body=b'["ab", {}, {}]'),
    "keywords that are no dict": lambda: delivery(body=b"[[], [], {}]"),
    "another encoding than it says": lambda: delivery(body=b'[["\xff"], {}, {}]'),
    "an unknown type marker": lambda: delivery(args=[{"__type__": "os.system", "__value__": "true"}]),
    "a marker with a wrong value": lambda: delivery(args=[{"__type__": "bytes", "__value__": 5}]),
    "too deep": lambda: delivery(body=b"[" * 100_000),
    "pickle": lambda: delivery(body=b"\x80\x04cos\nsystem\n", content_type="application/x-python-serialize"),
    "yaml": lambda: delivery(body=b"!!python/object/apply:os.system ['true']", content_type="application/x-yaml"),
    "no content type": lambda: delivery(content_type=None),
    "an id that is no text": lambda: delivery(id=5),
    "a task that is no text": lambda: delivery(["add"]),
    "a moment that is none": lambda: delivery(eta="tomorrow"),
    "a moment of another type": lambda: delivery(expires=5),
    "callbacks": lambda: delivery(body=json.dumps([[1, 2], {}, {**EMBED, "callbacks": [{"task": "x"}]}]).encode()),
    "no properties": lambda: Delivery("mail", 1, b"", b"[]", False),
    "properties of another shape": lambda: Delivery("mail", 1, b"[]", b"[]", False),
    "binary properties": lambda: Delivery("mail", 1, b"\xff\x00", b"[]", False),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_cannot_be_read_is_dead_lettered_unrun(make: Change) -> None:
    seen.clear()
    received = make()
    outcome = executor()(received)
    (publication,) = outcome.publish
    assert (outcome.event, publication.queue, outcome.requeue) == ("dead-lettered", "mail.dead", False)
    assert publication.message.body == received.body
    assert publication.message.headers["tq-dead-reason"] == "undecodable"
    assert publication.message.headers["tq-dead-detail"]
    assert seen == []


@pytest.mark.parametrize("value", ["x", -1, 1.5, None, [1]])
def test_counters_that_make_no_sense_count_as_none(value: Any) -> None:
    seen.clear()
    executor()(delivery("whoami", ["k"], retries=value, **header("tq-crashes", value)))
    assert (seen[0].retries, seen[0].crashes) == (0, 0)


def test_a_time_to_live_that_makes_no_sense_starts_anew() -> None:
    for value in ("x", None, float("nan")):
        outcome = executor()(delivery("nobody", **header("tq-unknown-since", value)))
        assert abs(outcome.publish[0].message.headers["tq-unknown-since"] - time.time()) < 5
