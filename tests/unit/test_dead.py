"""Dead letters as values: whatever a message says, there is a letter to look at; and what a replay makes of it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.dead import UNKNOWN, DeadLetter, Filter, read, revived
from taskq.errors import ConfigurationError, MessageError
from taskq.message import Message

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CRASHED = {
    "lang": "py",
    "task": "shop.charge",
    "id": "1",
    "retries": 2,
    "eta": "2026-11-22T11:00:00+00:00",
    "expires": None,
    "mine": "kept",
    "tq-crashes": 3,
    "tq-suspected": 1,
    "tq-alone": 1.0,
    "tq-deliveries": 6,
    "tq-unknown-since": 1.0,
    "tq-history": [{"worker": "a"}],
    "tq-dead-reason": "crashed",
    "tq-dead-detail": "took down 3 processes",
    "tq-dead-queue": "money",
    "tq-dead-worker": "host:1",
    "tq-dead-at": NOON.timestamp(),
    "tq-dead-first": NOON.timestamp() - 60,
    "tq-dead-traceback": "Traceback",
    "tq-dead-signal": "SIGSEGV",
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
HOSTILE = st.dictionaries(st.sampled_from([*CRASHED, "x-death", "tq-dead-new"]) | st.text(), VALUES, max_size=12)


def message(headers: dict[str, Any], body: bytes = b'[[1], {"b": 2}, {}]') -> Message:
    return Message(headers=headers, body=body)


def letter(**headers: Any) -> DeadLetter:
    return read(message({"id": "1", **headers}), "mail")


def test_a_letter_says_what_its_worker_wrote() -> None:
    made = read(message(CRASHED), "money")
    assert (made.id, made.task, made.queue) == ("1", "shop.charge", "money")
    assert (made.reason, made.detail, made.worker) == ("crashed", "took down 3 processes", "host:1")
    assert (made.signal, made.traceback) == ("SIGSEGV", "Traceback")
    assert (made.retries, made.crashes, made.deliveries) == (2, 3, 7)
    assert (made.first_at, made.last_at) == (NOON - timedelta(minutes=1), NOON)
    assert made.arguments() == ([1], {"b": 2})


def test_a_letter_that_rabbitmq_made_says_what_rabbitmq_wrote() -> None:
    last = {"reason": "delivery_limit", "queue": "mail", "time": int(NOON.timestamp()), "count": 1}
    made = letter(**{"x-death": [last, {"reason": "expired", "queue": "taskq_delayed_3", "time": 1}]})
    assert (made.reason, made.first_at, made.last_at) == ("delivery limit", NOON, NOON)


def test_a_letter_of_which_nothing_is_known() -> None:
    made = read(Message(headers={}, body=b"\xff"), "mail")
    assert (made.id, made.task, made.reason, made.last_at) == (None, None, UNKNOWN, None)
    with pytest.raises(MessageError):
        made.arguments()
    with pytest.raises(MessageError, match=r"no|not"):
        read(message({}, b'{"a": 1}'), "mail").arguments()


def test_a_message_without_headers_is_known_by_its_correlation_id() -> None:
    assert read(Message(headers={}, body=b"", correlation_id="7"), "mail").id == "7"


@given(HOSTILE, st.sampled_from(["mail", ""]))
def test_no_header_can_keep_a_letter_from_being_read_filtered_and_replayed(headers: dict[str, Any], queue: str) -> None:
    made = read(message(headers), queue)
    assert made.queue == queue
    assert all(isinstance(text, str | None) for text in (made.id, made.task, made.detail, made.worker, made.signal))
    assert min(made.retries, made.crashes) >= 0
    assert all(moment is None or moment.tzinfo is UTC for moment in (made.first_at, made.last_at))
    assert Filter(reason=made.reason).matches(made)
    copy = revived(made.message, NOON.timestamp())
    assert not [name for name in copy.headers if name.startswith("tq-dead-")]
    assert read(copy, queue).crashes == 0
    assert (copy.body, copy.content_type) == (made.message.body, made.message.content_type)


def test_a_replay_starts_anew_and_keeps_what_the_call_is() -> None:
    copy = revived(message(CRASHED), NOON.timestamp())
    assert copy.headers == {
        "lang": "py",
        "task": "shop.charge",
        "id": "1",
        "retries": 0,
        "eta": None,
        "expires": None,
        "mine": "kept",
        "tq-history": [{"worker": "a"}],
        # The fence of its results: what was recorded of the attempts before can be replaced.
        "tq-attempts": message(CRASHED).attempt,
    }
    assert copy.attempt == message(CRASHED).attempt + 1


def test_a_priority_is_dropped() -> None:
    assert revived(Message(headers={}, body=b"", priority=9), 0.0).priority is None


def test_a_replay_adds_no_other_header_to_a_message_that_has_none() -> None:
    assert revived(message({}), 0.0).headers == {"tq-attempts": 1}


@pytest.mark.parametrize(
    ("expires", "kept"),
    [
        ("2026-11-22T12:00:01+00:00", True),
        ("2026-11-22T11:59:59+00:00", False),
        ("2026-11-22T11:59:59", False),
        ("2026-11-22T12:00:01", True),
        ("2026-11-22T13:59:59+02:00", False),
        # What no worker can read is for the worker to say.
        ("noon", True),
        (17, True),
    ],
)
def test_an_expiry_that_has_passed_is_dropped(expires: Any, kept: bool) -> None:
    headers = revived(message({"expires": expires}), NOON.timestamp()).headers
    assert headers["expires"] == (expires if kept else None)


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), True),
        (Filter(task="shop.charge"), True),
        (Filter(task="shop"), False),
        (Filter(reason="crashed"), True),
        (Filter(reason="lost"), False),
        (Filter(since=NOON), True),
        (Filter(since=NOON + timedelta(seconds=1)), False),
        (Filter(ids=frozenset({"1", "2"})), True),
        (Filter(ids=frozenset({"2"})), False),
        (Filter(ids=frozenset()), False),
        (Filter(task="shop.charge", reason="lost"), False),
    ],
)
def test_filters(wanted: Filter, matches: bool) -> None:
    assert wanted.matches(read(message(CRASHED), "money")) == matches
    assert bool(wanted) == (wanted != Filter())


def test_a_letter_without_a_date_is_not_dead_since_any_moment() -> None:
    assert not Filter(since=datetime.fromtimestamp(0, UTC)).matches(letter())
    assert Filter(since=datetime.fromtimestamp(0, UTC)).matches(letter(**{"tq-dead-at": time.time()}))


def test_a_selection_is_checked() -> None:
    assert Filter.of({}) == Filter()
    assert Filter.of({"task": None, "ids": None, "since": None}) == Filter()
    assert Filter.of({"task": "a", "reason": "b", "since": NOON, "ids": ["c"]}) == Filter("a", "b", NOON, frozenset("c"))
    assert Filter.of({"ids": []}).ids == frozenset()
    with pytest.raises(ConfigurationError, match="time zone"):
        Filter.of({"since": datetime(2026, 11, 22)})
    with pytest.raises(ConfigurationError, match=r"write \['abc'\]"):
        Filter.of({"ids": "abc"})
    with pytest.raises(ConfigurationError, match="unknown filter 'tsk'"):
        Filter.of({"tsk": "a"})  # type: ignore[typeddict-unknown-key]
