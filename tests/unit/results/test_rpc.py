from __future__ import annotations

import pytest

from taskq.message import Message, Publication
from taskq.results import rpc
from taskq.results.rpc import _Inbox, _record, reply
from taskq.results.store import Record


def test_a_reply_is_a_message_to_the_callers_queue() -> None:
    record = Record("id", "SUCCESS", b'{"status":"SUCCESS"}', 3, reply_to="caller")
    message = Message(headers={}, body=record.meta, correlation_id="id")
    assert reply(record) == Publication("caller", message, reply=True)
    assert message.content_type == "application/json"


@pytest.mark.parametrize("reply_to", [None, ""])
def test_who_waits_for_no_reply_gets_none(reply_to: str | None) -> None:
    assert reply(Record("id", "SUCCESS", b"{}", reply_to=reply_to)) is None


def test_what_replies_say() -> None:
    body = b'{"status": "FAILURE", "attempt": 2, "result": {}, "task_id": "other"}'
    assert _record("a", body) == Record("a", "FAILURE", body, 2)
    of_celery = b'{"status": "SUCCESS", "result": NaN}'
    assert _record("a", of_celery) == Record("a", "SUCCESS", of_celery)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"status": 1}',
        b'{"status": NaN}',
        b'{"status": "MADE UP"}',
        b'{"status": "PENDING"}',
        b'{"status": "SUCCESS", "attempt": "1"}',
    ],
)
def test_what_is_no_reply_says_nothing(body: bytes) -> None:
    assert _record("a", body) is None


def test_replies_are_kept_until_they_are_too_many_those_that_were_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MOST_UNREAD", 3)
    monkeypatch.setattr(rpc, "MOST_READ", 2)
    inbox = _Inbox(60.0)
    records = [Record(f"{number}", "SUCCESS", b"{}") for number in range(6)]
    for record in records[:3]:
        inbox.put(record, 1.0)
    assert [inbox.get(record.id, 1.0) for record in records[:3]] == records[:3]
    assert [inbox.peek(record.id, 1.0) for record in records[:3]] == [None, *records[1:3]]
    for record in records[:1] + records[3:]:
        inbox.put(record, 1.0)
    assert [inbox.peek(record.id, 1.0) for record in records] == [None, *records[1:]]
    inbox.forget("1")
    inbox.forget("5")
    assert [inbox.peek(one, 1.0) for one in ("1", "5")] == [None, None]


def test_replies_have_a_time_to_live() -> None:
    inbox = _Inbox(10.0)
    inbox.put(Record("old", "SUCCESS", b"{}"), 100.0)
    inbox.get("old", 101.0)
    inbox.put(Record("new", "SUCCESS", b"{}"), 111.5)
    assert (inbox.peek("old", 112.0), inbox.peek("new", 112.0)) == (None, Record("new", "SUCCESS", b"{}"))
    assert inbox.put(Record("old", "FAILURE", b"{}"), 112.0)


def test_a_late_reply_replaces_no_later_one() -> None:
    inbox = _Inbox(60.0)
    assert inbox.put(Record("a", "STARTED", b"1", 2), 1.0)
    assert not inbox.put(Record("a", "FAILURE", b"2", 1), 1.0)
    assert inbox.put(Record("a", "FAILURE", b"3", 2), 1.0)
    assert not inbox.put(Record("a", "STARTED", b"4", 2), 1.0)
    assert inbox.put(Record("a", "SUCCESS", b"5", 3), 1.0)
    assert not inbox.put(Record("a", "FAILURE", b"6", 4), 1.0)
    assert inbox.get("a", 1.0) == Record("a", "SUCCESS", b"5", 3)
    assert inbox.put(Record("a", "SUCCESS", b"7", 3), 1.0)
    assert inbox.get("a", 1.0) == Record("a", "SUCCESS", b"7", 3)
