"""Where a task is and what it waits for, out of facts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from taskq.broker.interface import Found, QueueStats
from taskq.control import Revoke
from taskq.dead import read
from taskq.duration import spelled
from taskq.evidence import Facts, Seen
from taskq.message import Message
from taskq.plan import Plan
from taskq.step import CHAIN, CHORD, GROUP
from taskq.why import Answer, explain

NOW = 1_800_000_000.0


def message(**headers: Any) -> Message:
    return Message(headers={"id": "one", "task": "shop.pay", **headers}, body=b"[[], {}, {}]")


def found(state: Any = "ready", *, ahead: int = 0, due: float | None = None, headers: Any = None) -> Found:
    holder = 77 if state == "held" else None
    return Found(queue="mail", state=state, message=message(**headers or {}), ahead=ahead, due=due, holder=holder)


def asked(**facts: Any) -> Answer:
    known = Facts(id="one", now=NOW)
    return explain(msgspec.structs.replace(known, **{"found": (), **facts}))


def ended(status: str, result: Any = None, **more: Any) -> dict[str, Any]:
    return {"status": status, "result": result, "attempt": 1, "date_done": "2027-01-15T08:00:00+00:00", **more}


CONSUMED, DESERTED = {"mail": QueueStats(ready=3, consumers=2)}, {"mail": QueueStats(ready=3, consumers=0)}
VALUE_ERROR = {"exc_type": "ValueError", "exc_message": ["no", 7], "exc_module": "builtins"}
WORKED = [{"worker": "9@host", "started": 1.0, "seconds": 1.5, "ended": "succeeded"}]


def test_a_task_that_has_ended_well() -> None:
    answer = asked(meta=ended("SUCCESS", 3, attempts=WORKED))
    assert answer.state == "finished"
    assert answer.text == "it has succeeded at 2027-01-15T08:00:00+00:00, after 1.5 s, on 9@host"
    assert answer.details["attempts"] == 1
    assert asked(meta=ended("IGNORED")).state == "finished"


def test_a_task_that_has_failed() -> None:
    answer = asked(meta=ended("FAILURE", VALUE_ERROR, traceback="Traceback"))
    assert answer.state == "finished"
    assert answer.text.endswith("it has failed at 2027-01-15T08:00:00+00:00: ValueError: no, 7")
    assert answer.hint == "taskq result one shows the traceback"
    assert asked(meta=ended("FAILURE", "of another system")).text.endswith(": of another system")


def test_a_task_whose_message_has_yet_to_be_acked_has_ended_and_one_that_was_replayed_has_not() -> None:
    assert asked(meta=ended("SUCCESS"), found=(found("held"),)).state == "finished"
    again = found(headers={"tq-attempts": 1})
    assert asked(meta=ended("FAILURE", VALUE_ERROR), found=(again,), queues=CONSUMED).state == "waiting"


def test_a_task_that_was_revoked() -> None:
    assert asked(meta=ended("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["revoked"]})).state == "revoked"
    standing = Revoke("one", at=NOW - 90)
    assert asked(revoked=standing, found=None, queues=CONSUMED).text.startswith(
        "it was revoked 1 min 30 s ago and will not run"
    )
    assert asked(revoked=standing, found=(found(),), queues=CONSUMED).state == "revoked"
    assert asked(revoked=standing, found=(found("delayed", due=NOW + 5),)).state == "revoked"
    held = asked(revoked=standing, found=(found("held"),))
    assert held.state == "held"
    assert "it was revoked meanwhile" in held.text


def test_a_dead_letter() -> None:
    letter = read(message(**{"tq-dead-reason": "crashed", "tq-dead-detail": "SIGSEGV", "tq-crashes": 3}), "mail")
    answer = asked(letter=letter, meta=ended("FAILURE", {"exc_type": "DeadLettered", "exc_message": ["crashed"]}))
    assert answer.state == "dead"
    assert answer.text == "it is among the dead letters of queue 'mail', reason 'crashed': SIGSEGV"
    assert answer.hint is not None
    assert answer.hint.startswith("taskq dead show mail --id one")
    replayed = asked(letter=letter, found=(found(),), queues=CONSUMED)
    assert replayed.state == "waiting", "a copy of it is under way"


def test_a_message_that_waits_its_turn() -> None:
    answer = asked(found=(found(ahead=12, headers={"tq-sent": NOW - 3}),), queues=CONSUMED)
    assert answer.state == "waiting"
    assert answer.text == "it waits in queue 'mail', behind 12 others, for 3 s so far; workers that fetch from the queue: 2"
    assert (answer.details["ahead"], answer.details["waited"]) == (12, 3.0)


def test_a_message_that_nobody_fetches() -> None:
    assert asked(found=(found(),), queues=DESERTED).state == "unconsumed"
    answer = asked(found=(found(),), queues=DESERTED, paused={"mail"})
    assert (answer.state, answer.hint) == ("paused", "taskq resume mail")


def test_a_message_that_a_worker_has() -> None:
    answer = asked(found=(found("held"),))
    assert (answer.state, answer.details["pid"]) == ("held", 77)
    started = {"status": "STARTED", "attempt": 1, "result": {"pid": 78, "worker": "77@host", "started": NOW - 65}}
    answer = asked(found=(found("held"),), meta=started)
    assert answer.state == "running"
    assert answer.text == "it has been running for 1 min 5 s, in process 78 of worker 77@host"
    assert answer.details["queue"] == "mail"
    of_before = asked(found=(found("held", headers={"retries": 1}),), meta=started)
    assert of_before.state == "held", "the record is of an earlier attempt"
    assert asked(found=None, meta=started).state == "running"


def test_a_message_whose_time_has_not_come() -> None:
    answer = asked(found=(found("delayed", due=NOW + 90),))
    assert (answer.state, answer.text) == ("delayed", "its time comes in 1 min 30 s, in queue 'mail'")
    retry = found("delayed", due=NOW + 5, headers={"retries": 2, "tq-history": [{"ended": "ValueError: no"}]})
    assert asked(found=(retry,)).text == "its retry 2 comes in 5 s, in queue 'mail'; it ended before with ValueError: no"
    assert asked(found=(found("delayed", due=NOW - 1),)).state == "delayed"
    late = asked(found=(found("delayed", due=NOW - 60),))
    assert (late.state, late.hint) == ("unconsumed", "start one: taskq worker -A … -Q mail")


PLAN = Plan(
    None,
    "celery.chain",
    CHAIN,
    [
        Plan("first", "shop.load"),
        Plan("both", "celery.chord", CHORD, [Plan("left", "shop.left"), Plan("right", "shop.right"), Plan("one", "shop.sum")]),
        Plan("last", "shop.tell"),
    ],
)


@pytest.mark.parametrize(
    ("task_id", "statuses", "waits_for"),
    [
        ("left", {"first": "STARTED"}, ["first"]),
        ("one", {"first": "SUCCESS", "left": "IGNORED"}, ["right"]),
        ("last", {"first": "SUCCESS"}, ["left", "right", "one"]),
    ],
)
def test_a_step_of_a_workflow_waits_for_those_before_it(task_id: str, statuses: dict[str, str], waits_for: list[str]) -> None:
    answer = explain(Facts(id=task_id, now=NOW, found=(), plan=PLAN, statuses=statuses))
    assert answer.state == "blocked"
    assert answer.details["waits_for"] == waits_for


def test_a_group_has_ended_when_its_members_have() -> None:
    plan = Plan("all", "celery.group", GROUP, [Plan("a", "shop.a"), Plan("b", "shop.b")])
    answer = explain(Facts(id="all", now=NOW, found=(), plan=plan, statuses={"a": "SUCCESS"}))
    assert answer.text.startswith("it waits for 1 of the 2 tasks before it in its workflow: shop.b (b, PENDING)")


def test_a_step_that_waits_for_nothing_any_more_is_wherever_messages_are() -> None:
    statuses = dict.fromkeys(("first", "left", "right"), "SUCCESS")
    assert explain(Facts(id="one", now=NOW, found=(), plan=PLAN, statuses=statuses)).state == "unknown"
    assert explain(Facts(id="other", now=NOW, found=(), plan=PLAN)).state == "unknown"


def test_where_the_broker_cannot_look_the_queues_are_described() -> None:
    queues = {"mail": QueueStats(ready=5), "slow": QueueStats(ready=1, consumers=2), "old": QueueStats(ready=0), "new": None}
    answer = asked(found=None, queues=queues, paused={"old"})
    assert answer.state == "pending"
    assert "Queue 'mail' has 5 ready, and no worker fetching: none is up, or all are busy" in answer.text
    assert "Queue 'slow' has 1 ready, and 2 consumers" in answer.text
    assert "Queue 'old' has 0 ready, and is paused" in answer.text
    assert "Queue 'new' does not exist" in answer.text
    assert answer.hint == "--queue says which queue to look at"


def test_workers_that_answer_are_counted() -> None:
    queues = {"mail": QueueStats(ready=5), "slow": QueueStats(ready=1), "new": QueueStats(ready=0)}
    answer = asked(found=None, queues=queues, workers={"taskq@a": ("mail", "slow"), "taskq@b": ("mail",)})
    assert answer.text.startswith("it waits, if it was sent at all: no worker that answers has it, and the broker can't look")
    assert "Queue 'mail' has 5 ready, and 2 workers that answer." in answer.text
    assert "Queue 'slow' has 1 ready, and 1 worker that answers." in answer.text
    assert "Queue 'new' has 0 ready, and no workers that answer" in answer.text


def test_what_the_worker_says_that_has_it() -> None:
    seen = Seen(worker="taskq@a", queue="mail", task="shop.pay", running=True, pid=78, since=NOW - 65)
    running = asked(seen=seen, found=None, revoked=Revoke("one"))
    assert running.state == "running"
    assert running.text == "it has been running for 1 min 5 s, in process 78 of taskq@a; it was revoked meanwhile"
    fetched = asked(seen=msgspec.structs.replace(seen, running=False, pid=None, since=None), found=(found("held"),))
    assert fetched.state == "held"
    assert fetched.text == "taskq@a has fetched it from queue 'mail', and it waits there for a child"
    assert asked(seen=seen, meta=ended("SUCCESS")).state == "finished"


def test_what_has_left_no_trace() -> None:
    assert asked().state == "unknown"
    assert asked(found=None).state == "unknown"


def test_a_hostile_message_upsets_nothing() -> None:
    odd = found("delayed", due=NOW + 5, headers={"retries": 1, "tq-history": "x", "tq-sent": "soon", "task": 7})
    assert asked(found=(odd,)).state == "delayed"
    assert asked(found=(found(headers={"tq-sent": []}),), queues=CONSUMED).details["waited"] is None
    assert asked(found=None, meta={"status": "STARTED", "result": None}).state == "running"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0204, "20 ms"),
        (0.9996, "1 s"),
        (1.5, "1.5 s"),
        (42.4, "42 s"),
        (65, "1 min 5 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations_are_spelled_in_two_units(seconds: float, text: str) -> None:
    assert spelled(seconds) == text


def test_a_moment_is_of_a_letter() -> None:
    letter = read(message(**{"tq-dead-at": NOW}), "mail")
    assert asked(letter=letter).details["last_at"] == datetime.fromtimestamp(NOW, UTC)
