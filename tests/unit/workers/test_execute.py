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
from taskq.errors import Ignore, Reject, Retry, Terminated
from taskq.results.store import Record
from taskq.workers.execute import Executor
from taskq.workers.note import Terms
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


def raises(error: str) -> None:
    seen.append(error)
    raise {
        "Ignore": Ignore(),
        "Reject": Reject("no"),
        "requeue": Reject("no", requeue=True),
        "ValueError": ValueError("v"),
        "OSError": OSError("o"),
        "Retry": Retry(OSError("o"), countdown=0.5),
        "Terminated": Terminated(),
    }[error]


def broken(error: BaseException) -> bool:
    raise ZeroDivisionError(str(error))


def once() -> None:
    seen.append("once")


class Noted:
    """Surroundings that remember what they were told."""

    def __init__(self, *, allowed: bool = True, terminated: bool = False) -> None:
        self.begun: list[Record] = []
        self.terms: list[Terms] = []
        self.released = 0
        self.messages: list[tuple[str, float]] = []
        self._allowed = allowed
        self._terminated = terminated

    def met(self, task: str, waited: float) -> None:
        self.messages.append((task, waited))

    def may_begin(self, begun: Record) -> bool:
        self.begun.append(begun)
        return self._allowed

    def is_the_one(self) -> bool:
        return self._allowed

    def begins(self, begun: Record) -> None:
        self.begun.append(begun)

    def agree(self, terms: Terms) -> None:
        self.terms.append(terms)

    def release(self) -> bool:
        self.released += 1
        return self._terminated


def executor(**settings: Any) -> Executor:
    app = TaskQ("unit", broker="sqlite:////nowhere/unit.db")
    for function in (add, fail, leave, interrupt, unfaithful):
        app.task(name=function.__name__)(function)
    app.task(name="whoami", bind=True)(whoami)
    app.task(name="raises", autoretry_for=(ValueError,), default_retry_delay=7.0, max_retries=2, retry_on=broken)(raises)
    app.task(name="once", acks_late=False)(once)
    app.task(name="slow", soft_time_limit=5.0, time_limit=9.0, on_timeout="retry", default_retry_delay=3.0)(once)
    chosen = config.load({"broker": "sqlite:////nowhere/unit.db", **settings}, environment={})
    return Executor(app.tasks, chosen, decode, "1@host")


def run(delivery: Delivery, **settings: Any) -> Outcome:
    """What becomes of the delivery."""
    outcome = executor(**settings)(delivery)
    assert outcome is not None
    return outcome


def delivery(
    task: Any = "add",
    args: Any = (1, 2),
    *,
    body: bytes | None = None,
    content_type: str | None = "application/json",
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
    return Delivery("mail", 1, encode(envelope), json.dumps([args, {}, EMBED]).encode() if body is None else body, redelivered)


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
    outcome = run(delivery())
    assert (outcome.event, outcome.publish) == ("succeeded", ())
    assert (meta(outcome)["result"], meta(outcome)["task_id"], meta(outcome)["parent_id"]) == (3, "id-1", "id-0")


def test_a_success_with_no_result_to_keep_is_the_cheapest_outcome() -> None:
    assert run(delivery(ignore_result=True)) is SUCCEEDED
    assert run(delivery(), backend="off") is SUCCEEDED


def test_failure() -> None:
    outcome = run(delivery("fail", ["no such order"]))
    described = meta(outcome)
    assert (outcome.event, described["status"]) == ("failed", "FAILURE")
    assert described["result"] == {"exc_type": "ValueError", "exc_message": ["no such order", "{1}"], "exc_module": "builtins"}
    assert "raise ValueError(text, {1})" in described["traceback"]
    assert "workers/execute.py" not in described["traceback"]
    assert run(delivery("fail", ["x"], ignore_result=True)).record is None


@pytest.mark.parametrize(("task", "exc_type"), [("leave", "SystemExit"), ("interrupt", "KeyboardInterrupt")])
def test_whatever_a_task_raises_is_its_failure(task: str, exc_type: str) -> None:
    assert meta(run(delivery(task, [])))["result"]["exc_type"] == exc_type


def test_a_result_that_json_cannot_carry_is_a_failure() -> None:
    described = meta(run(delivery("unfaithful", [])))
    assert described["status"] == "FAILURE"
    assert "set" in described["result"]["exc_message"][0]


def test_a_wrong_call_is_a_failure() -> None:
    described = meta(run(delivery("add", [1])))
    assert described["result"]["exc_type"] == "TypeError"
    assert "missing 1 required positional argument: 'b'" in described["result"]["exc_message"][0]


def test_a_bound_task_knows_its_attempt() -> None:
    seen.clear()
    run(delivery("whoami", ["k"], redelivered=True, retries=1, **header("tq-crashes", 5)))
    (attempt,) = seen
    assert (attempt.id, attempt.task, attempt.queue, attempt.retries, attempt.crashes) == ("id-1", "whoami", "mail", 1, 5)
    assert (attempt.redelivered, attempt.root_id, attempt.parent_id, attempt.number) == (True, "id-0", "id-0", 7)
    assert current_attempt() is None


def test_expired() -> None:
    seen.clear()
    outcome = run(delivery(expires=moment(-1)))
    assert (outcome.event, meta(outcome)["status"]) == ("revoked", "REVOKED")
    assert run(delivery(expires=moment(-1), ignore_result=True)).record is None
    assert seen == []
    assert run(delivery(expires=moment(60))).event == "succeeded"


def test_what_is_not_due_yet_is_sent_again_with_a_delay() -> None:
    seen.clear()
    outcome = run(delivery(eta=moment(60), x="kept"))
    (again,) = outcome.publish
    assert (outcome.event, outcome.record, again.queue) == ("delayed", None, "mail")
    assert 55 < again.delay <= 60
    assert again.message.headers["x"] == "kept"
    assert seen == []
    for due in (-60, 0.05):
        assert run(delivery(eta=moment(due))).event == "succeeded"
    assert run(delivery(eta=moment(60), expires=moment(-1))).event == "revoked"


def test_a_moment_without_a_zone_is_utc() -> None:
    naive = (datetime.now(UTC) + timedelta(seconds=60)).replace(tzinfo=None).isoformat()
    assert run(delivery(eta=naive)).event == "delayed"


def test_an_unknown_task_waits_and_is_dead_lettered_in_the_end() -> None:
    first = run(delivery("nobody"), unknown_task_ttl=10.0)
    (again,) = first.publish
    since = again.message.headers["tq-unknown-since"]
    assert (first.event, again.queue, 0 < again.delay <= 5) == ("delayed", "mail", True)
    assert abs(since - time.time()) < 5
    later = run(delivery("nobody", **header("tq-unknown-since", since - 5)), unknown_task_ttl=10.0)
    assert later.publish[0].message.headers["tq-unknown-since"] == since - 5
    last = run(delivery("nobody", **header("tq-unknown-since", since - 10)), unknown_task_ttl=10.0)
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
    "an empty id": lambda: delivery(id=""),
    "a task that is no text": lambda: delivery(["add"]),
    "a moment that is none": lambda: delivery(eta="tomorrow"),
    "a moment of another type": lambda: delivery(expires=5),
    "callbacks that are none": lambda: delivery(
        body=json.dumps([[1, 2], {}, {**EMBED, "callbacks": [{"tusk": "x"}]}]).encode()
    ),
    "no properties": lambda: Delivery("mail", 1, b"", b"[]", False),
    "properties of another shape": lambda: Delivery("mail", 1, b"[]", b"[]", False),
    "binary properties": lambda: Delivery("mail", 1, b"\xff\x00", b"[]", False),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_cannot_be_read_is_dead_lettered_unrun(make: Change) -> None:
    seen.clear()
    received = make()
    outcome = run(received)
    (publication,) = outcome.publish
    assert (outcome.event, publication.queue) == ("dead-lettered", "mail.dead")
    assert publication.message.body == received.body
    assert publication.message.headers["tq-dead-reason"] == "undecodable"
    assert publication.message.headers["tq-dead-detail"]
    assert seen == []


@pytest.mark.parametrize("value", ["x", -1, 1.5, None, [1]])
def test_counters_that_make_no_sense_count_as_none(value: Any) -> None:
    seen.clear()
    run(delivery("whoami", ["k"], retries=value, **header("tq-crashes", value)))
    assert (seen[0].retries, seen[0].crashes) == (0, 0)


def test_a_time_to_live_that_makes_no_sense_starts_anew() -> None:
    for value in ("x", None, True, float("nan"), -1e308, 2**63, time.time() + 1e6):
        outcome = run(delivery("nobody", **header("tq-unknown-since", value)))
        assert abs(outcome.publish[0].message.headers["tq-unknown-since"] - time.time()) < 5


def test_a_retry_keeps_the_id_and_remembers_the_attempt() -> None:
    outcome = run(delivery("raises", ["ValueError"], **header("tq-alone", 1.0), **header("tq-suspected", 1)))
    (again,) = outcome.publish
    assert (meta(outcome)["status"], again.queue, again.delay, again.first) == ("RETRY", "mail", 7.0, False)
    headers = again.message.headers
    assert (headers["id"], headers["retries"]) == ("id-1", 1)
    assert abs(datetime.fromisoformat(headers["eta"]).timestamp() - time.time() - 7) < 5
    (past,) = headers["tq-history"]
    assert (past["worker"], past["ended"]) == ("1@host", "ValueError('v')")
    assert not {"tq-alone", "tq-suspected"} & headers.keys(), "it has ended without taking its worker down"
    (again,) = run(delivery("raises", ["Retry"], retries=1)).publish
    assert (again.delay, again.message.headers["retries"]) == (0.5, 2)
    assert again.message.headers["tq-history"][0]["ended"] == "OSError('o')"


@pytest.mark.parametrize("error", ["ValueError", "Retry"])
def test_exhausted_retries_are_a_failure_and_a_dead_letter(error: str) -> None:
    outcome = run(delivery("raises", [error], retries=2))
    (letter,) = outcome.publish
    assert (outcome.event, letter.queue, letter.message.headers["tq-dead-reason"]) == (
        "dead-lettered",
        "mail.dead",
        "retries exhausted",
    )
    assert "raise" in letter.message.headers["tq-dead-traceback"]
    assert meta(outcome)["result"]["exc_type"] == {"ValueError": "ValueError", "Retry": "OSError"}[error]


def test_a_broken_retry_on_leaves_the_task_with_its_own_error() -> None:
    outcome = run(delivery("raises", ["OSError"]))
    assert (outcome.event, meta(outcome)["result"]["exc_type"]) == ("failed", "OSError")


def test_what_a_task_asks_for() -> None:
    assert (run(delivery("raises", ["Ignore"])).event, meta(run(delivery("raises", ["Ignore"])))["status"]) == (
        "ignored",
        "IGNORED",
    )
    rejected = run(delivery("raises", ["Reject"]))
    assert (rejected.publish[0].queue, rejected.publish[0].message.headers["tq-dead-reason"]) == ("mail.dead", "rejected")
    (again,) = run(delivery("raises", ["requeue"])).publish
    assert (again.queue, again.message.headers["tq-deliveries"]) == ("mail", 1)
    assert again.delay > 0, "whoever rejects it must not spin"
    assert meta(run(delivery("raises", ["Terminated"])))["status"] == "REVOKED"


def test_a_task_that_raises_after_it_was_terminated_is_revoked() -> None:
    execute = executor()
    execute.surroundings = noted = Noted(terminated=True)
    outcome = execute(delivery("raises", ["ValueError"]))
    assert outcome is not None
    assert (outcome.event, meta(outcome)["status"], noted.released) == ("revoked", "REVOKED", 1)


def test_a_task_that_runs_at_most_once_asks_first() -> None:
    seen.clear()
    for allowed in (False, True):
        execute = executor()
        execute.surroundings = noted = Noted(allowed=allowed)
        outcome = execute(delivery("once", [], ignore_result=True))
        assert (outcome is not None, seen) == (allowed, ["once"] * allowed)
        (begun,) = noted.begun
        assert (begun.id, begun.status) == ("id-1", "STARTED")
    assert outcome is not None
    assert meta(outcome)["status"] == "SUCCESS", "what was begun in the records must end there"


def test_without_results_a_task_that_may_have_begun_is_lost() -> None:
    seen.clear()
    for delivered in (delivery("once", [], redelivered=True), delivery("once", [], **header("tq-returns", 1))):
        (letter,) = run(delivered, backend="off").publish
        assert letter.message.headers["tq-dead-reason"] == "lost"
    assert seen == []
    assert run(delivery("once", []), backend="off") is SUCCEEDED


@pytest.mark.parametrize(
    ("header_value", "soft", "hard"),
    [(None, 5.0, 9.0), ([None, None], 5.0, 9.0), ([4, 2.5], 2.5, 4.0), ([0, 0], 5.0, 9.0), ([60, None], 5.0, 60.0)],
)
def test_the_limits_of_the_call_go_before_those_of_the_task(header_value: Any, soft: float, hard: float) -> None:
    execute = executor(time_limit=100, soft_time_limit=50)
    execute.surroundings = noted = Noted()
    before = time.monotonic()
    execute(delivery("slow", [], timelimit=header_value))
    (terms,) = noted.terms
    assert abs(terms.soft - before - soft) < 1
    assert abs(terms.hard - before - hard) < 1
    assert (terms.task_id, terms.retry_delay) == ("id-1", 3.0)
    execute(delivery("slow", [], retries=3))
    assert noted.terms[-1].retry_delay < 0, "no retry is left"
    execute(delivery("add"))
    assert abs(noted.terms[-1].hard - before - 100) < 1, "the worker's own"


@pytest.mark.parametrize("value", ["x", [1], [1, 2, 3], [-1, None], [True, None], [None, float("nan")], {"hard": 1}])
def test_a_time_limit_that_makes_no_sense_is_dead_lettered(value: Any) -> None:
    outcome = run(delivery(timelimit=value))
    assert (outcome.event, outcome.publish[0].message.headers["tq-dead-reason"]) == ("dead-lettered", "undecodable")
