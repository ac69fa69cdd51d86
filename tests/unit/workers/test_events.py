"""The tap and the chronicle: what is told of what has happened."""

from __future__ import annotations

import time
from typing import Any

import pytest

from taskq.broker.interface import Delivery
from taskq.broker.pidbox import Clock
from taskq.message import HISTORY, Message, Publication
from taskq.workers import note, tap
from taskq.workers.events import Chronicle
from taskq.workers.outcome import Outcome, again, dead_letter, failure, record, revoked
from taskq.workers.portrait import HIDDEN, LONGEST, Painter
from taskq.workers.slot import Slot
from taskq.workers.tap import Happening, Held, Tap

HEADERS: dict[str, Any] = {"id": "one", "task": "add", "root_id": "root", "retries": 2}
MESSAGE = Message(headers=HEADERS, body=b'[[1, "secret"], {"key": 2}, {}]')
HELD = Held("mail", b"", b"", False)


def painter(message: Message = MESSAGE, *, show: bool = False) -> Painter:
    return Painter(lambda _properties, _body: message, "taskq@here", show_arguments=show)


def told(*happenings: Happening, show: bool = False, message: Message = MESSAGE) -> list[dict[str, Any]]:
    return Chronicle("taskq@here", painter(message, show=show), Clock()).tasks(happenings)


def test_a_message_that_came_in() -> None:
    [event] = told(Happening(7.5, HELD))
    assert event["type"] == "task-received"
    assert (event["timestamp"], event["hostname"], event["clock"]) == (7.5, "taskq@here", 1)
    assert (event["uuid"], event["name"], event["root_id"], event["retries"]) == ("one", "add", "root", 2)
    assert (event["args"], event["kwargs"], event["queue"]) == (HIDDEN, HIDDEN, "mail")


def test_arguments_are_shown_where_that_is_wanted_and_never_in_full_length() -> None:
    [event] = told(Happening(0.0, HELD), show=True)
    assert (event["args"], event["kwargs"]) == ("[1, 'secret']", "{'key': 2}")
    hidden = MESSAGE.with_headers(argsrepr="(1, '***')")
    assert painter(hidden, show=True).arguments(hidden) == ("(1, '***')", "{'key': 2}")
    assert painter(hidden).arguments(hidden) == (HIDDEN, HIDDEN)
    long = Message(headers=HEADERS, body=b'[["' + b"x" * 10_000 + b'"], {}, {}]')
    assert len(painter(long, show=True).arguments(long)[0]) == LONGEST
    broken = Message(headers=HEADERS, body=b"\xff")
    assert "not the JSON" in painter(broken, show=True).arguments(broken)[0]


def test_a_short_task_is_told_of_as_begun_and_ended_and_a_long_one_once_each() -> None:
    success = Outcome("succeeded", record=record(MESSAGE, "SUCCESS", 3))
    begun, ended = told(Happening(10.0, HELD, outcome=success, seconds=0.5))
    assert (begun["type"], begun["timestamp"]) == ("task-started", 9.5)
    assert (ended["type"], ended["timestamp"], ended["runtime"], ended["result"]) == ("task-succeeded", 10.0, 0.5, HIDDEN)
    assert begun["clock"] < ended["clock"]
    [begun, ended] = told(
        Happening(9.5, HELD, begun=True), Happening(10.0, HELD, outcome=success, seconds=0.5, told=True), show=True
    )
    assert (begun["type"], ended["type"], ended["result"]) == ("task-started", "task-succeeded", "3")


FAILED = record(MESSAGE, "FAILURE", failure("ValueError", ["no", 7], "builtins"), "the traceback")
REMEMBERED = MESSAGE.with_headers(**{HISTORY: [{"ended": "KeyError('x')"}]})


@pytest.mark.parametrize(
    ("outcome", "kind", "fields"),
    [
        (Outcome("failed", record=FAILED), "failed", {"exception": "ValueError('no', 7)", "traceback": "the traceback"}),
        (Outcome("failed", unkept=FAILED), "failed", {"exception": "ValueError('no', 7)", "traceback": "the traceback"}),
        (Outcome("failed"), "failed", {"exception": "unknown: its message has no id"}),
        (Outcome("retried", (Publication("mail", REMEMBERED),)), "retried", {"exception": "KeyError('x')"}),
        (again("crashed", "mail", REMEMBERED), "retried", {"exception": "KeyError('x')"}),
        (again("rejected", "mail", MESSAGE), "rejected", {"requeue": True}),
        (
            Outcome("revoked", record=record(MESSAGE, "REVOKED", revoked("terminated"))),
            "revoked",
            {"terminated": True, "expired": False},
        ),
        (
            Outcome("revoked", record=record(MESSAGE, "REVOKED", revoked("expired"))),
            "revoked",
            {"terminated": False, "expired": True},
        ),
        (
            Outcome("revoked", unkept=record(MESSAGE, "REVOKED", revoked("expired"))),
            "revoked",
            {"terminated": False, "expired": True},
        ),
        (dead_letter("mail", MESSAGE, "rejected", "bad", worker="w", end=None), "rejected", {"requeue": False}),
        (
            dead_letter("mail", MESSAGE, "crashed", "SIGSEGV", worker="w", end=None),
            "failed",
            {"exception": "DeadLettered('crashed: SIGSEGV')"},
        ),
    ],
)
def test_each_end_has_its_event(outcome: Outcome, kind: str, fields: dict[str, Any]) -> None:
    [event] = told(Happening(1.0, HELD, outcome=outcome))
    assert event["type"] == f"task-{kind}"
    assert {name: event[name] for name in fields} == fields


def test_what_is_only_passed_on_is_not_told_of() -> None:
    outcomes = [again("given back", "mail", MESSAGE), Outcome("delayed"), Outcome("ignored"), Outcome("dropped")]
    assert told(*[Happening(1.0, HELD, outcome=outcome) for outcome in outcomes]) == []
    assert told(Happening(1.0, HELD), message=Message(headers={}, body=b"")) == []


def delivery() -> Delivery:
    return Delivery("mail", 1, b"p", b"b", False)


def test_nothing_is_noted_before_somebody_listens() -> None:
    watched = Tap()
    one = delivery()
    watched.received([one])
    watched.ended(one, Outcome("succeeded"), 5)
    assert watched.drain(10) == []
    watched.on = True
    watched.received([one])
    watched.ended(one, Outcome("succeeded"), 500_000)
    came, ended = watched.drain(10)
    assert (came.held, came.outcome) == (Held("mail", b"p", b"b", False), None)
    assert (ended.seconds, ended.told) == (0.5, False)


def test_a_task_that_runs_is_noticed_once() -> None:
    watched, slot, one = Tap(), Slot(0, note.Note(note.create(1), 0)), delivery()
    watched.on = True
    slot.give(3, one)
    watched.look([slot])
    assert watched.drain(10) == []
    slot.note.begin(3, time.monotonic() - 1.0)
    watched.look([slot])
    assert watched.drain(10) == [], "its task may be unknown, or its time over"
    slot.note.agree(note.Terms("one"))
    watched.look([slot])
    watched.look([slot])
    [begun] = watched.drain(10)
    assert begun.begun
    assert time.time() - begun.at == pytest.approx(1.0, abs=0.5)
    watched.ended(one, Outcome("succeeded"), 7)
    assert watched.drain(10)[0].told


def test_what_is_too_much_is_forgotten_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "MOST", 3)
    watched = Tap()
    watched.on = True
    watched.received([delivery() for _ in range(5)])
    assert (len(watched.drain(2)), watched.dropped) == (2, 2)
    watched.received([delivery()])
    assert (len(watched.drain(10)), watched.dropped) == (2, 2)
