"""Outcomes as values: records as Celery reads them, dead letters with their reasons."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import msgspec
from celery import Celery
from celery.backends.base import Backend

from taskq.describe import LONGEST_IN_HEADERS
from taskq.errors import TaskFailed
from taskq.message import Message
from taskq.results.handle import rebuilt
from taskq.results.store import Record
from taskq.workers.outcome import LONGEST_END, LONGEST_HISTORY, again, dead_letter, failure, past, record, with_attempt

MESSAGE = Message(headers={"id": "id-1", "task": "shop.pay", "x": 1}, body=b"[[], {}, {}]", priority=5, correlation_id="id-1")


def child_of(parent: str) -> Message:
    return msgspec.structs.replace(MESSAGE, headers={**MESSAGE.headers, "parent_id": parent})


def meta_of(kept: Record | None) -> dict[str, Any]:
    assert kept is not None
    meta: dict[str, Any] = json.loads(kept.meta)
    return meta


def test_a_record_is_in_celerys_format() -> None:
    kept = record(child_of("id-0"), "SUCCESS", {"sum": 3})
    assert kept is not None
    meta = json.loads(kept.meta)
    assert (kept.id, kept.status) == ("id-1", "SUCCESS")
    assert meta["result"] == {"sum": 3}
    assert meta["parent_id"] == "id-0"
    assert abs(datetime.fromisoformat(meta["date_done"]).timestamp() - time.time()) < 5
    expected = Backend(app=Celery(set_as_current=False))._get_result_meta({"sum": 3}, "SUCCESS", None, None)
    assert expected.keys() <= meta.keys()


def test_a_failure_can_be_rebuilt() -> None:
    meta = meta_of(record(MESSAGE, "FAILURE", failure("KeyError", ["x"], "builtins"), "trace"))
    error = rebuilt(meta)
    assert isinstance(error, KeyError)
    assert error.args == ("x",)


def test_an_exception_of_a_module_that_is_not_imported_is_not_imported() -> None:
    meta = meta_of(record(MESSAGE, "FAILURE", failure("Bomb", ["x"], "antigravity"), "trace"))
    error = rebuilt(meta)
    assert isinstance(error, TaskFailed)
    assert (error.exc_type, error.traceback) == ("Bomb", "trace")


def test_a_record_tells_of_the_attempts() -> None:
    twice = with_attempt(with_attempt(MESSAGE, "1@host", 5.0, 0.25, "OSError()"), "2@host", 6.0, 1.0, "SIGKILL")
    assert meta_of(record(twice, "SUCCESS", 1))["attempts"] == [
        {"worker": "1@host", "started": 5.0, "seconds": 0.25, "ended": "OSError()"},
        {"worker": "2@host", "started": 6.0, "seconds": 1.0, "ended": "SIGKILL"},
    ]
    assert "attempts" not in meta_of(record(MESSAGE, "SUCCESS", 1))


def test_a_message_remembers_its_latest_attempts() -> None:
    message = MESSAGE
    for number in range(LONGEST_HISTORY + 5):
        message = with_attempt(message, "w", float(number), 0.0, "错" * 10_000)
    attempts = past(message)
    assert [attempt["started"] for attempt in attempts] == [float(number) for number in range(5, LONGEST_HISTORY + 5)]
    assert {len(attempt["ended"].encode()) <= LONGEST_END for attempt in attempts} == {True}
    assert past(Message(headers={"tq-history": "nonsense"}, body=b"")) == []


def test_a_message_that_goes_again_counts_its_deliveries_and_keeps_what_it_is() -> None:
    (publication,) = again("given back", "mail", again("crashed", "mail", MESSAGE, x=2).publish[0].message, first=True).publish
    copy = publication.message
    assert (publication.queue, publication.first, copy.headers["tq-deliveries"]) == ("mail", True, 2)
    assert (copy.headers["id"], copy.headers["x"], copy.body, copy.priority) == ("id-1", 2, MESSAGE.body, 5)


def test_a_dead_letter_says_why_and_keeps_the_message() -> None:
    end = record(MESSAGE, "FAILURE", None)
    message = with_attempt(MESSAGE.with_headers(**{"tq-alone": 1.0}), "w", 5.0, 0.0, "SIGSEGV")
    outcome = dead_letter(
        "mail", message, "crashed", "bad", worker="1@host", end=end, traceback="错" * 99_999, signal="SIGSEGV"
    )
    (publication,) = outcome.publish
    letter = publication.message
    assert (publication.queue, publication.delay) == ("mail.dead", 0.0)
    assert MESSAGE.headers.items() <= letter.headers.items()
    assert {name: letter.headers[f"tq-dead-{name}"] for name in ("reason", "detail", "queue", "worker", "signal", "first")} == {
        "reason": "crashed",
        "detail": "bad",
        "queue": "mail",
        "worker": "1@host",
        "signal": "SIGSEGV",
        "first": 5.0,
    }
    assert abs(letter.headers["tq-dead-at"] - time.time()) < 5
    assert len(letter.headers["tq-dead-traceback"].encode()) <= LONGEST_IN_HEADERS, "it fits into one frame of AMQP"
    assert "tq-alone" not in letter.headers
    assert letter.body == MESSAGE.body
    assert letter.priority is None, "a dead-letter queue has no priorities"
    assert outcome.record is end


def test_a_message_without_an_id_has_no_record() -> None:
    assert record(Message(headers={"id": 5}, body=b"?"), "FAILURE", None) is None
    by_correlation = record(Message(headers={}, body=b"?", correlation_id="id-7"), "FAILURE", None)
    assert by_correlation is not None
    assert by_correlation.id == "id-7"
