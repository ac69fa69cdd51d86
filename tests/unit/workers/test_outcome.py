"""Outcomes as values: records as Celery reads them, dead letters with their reasons."""

from __future__ import annotations

import json
import time
from datetime import datetime

from celery import Celery
from celery.backends.base import Backend

from taskq.errors import TaskFailed
from taskq.message import Message
from taskq.results.handle import rebuilt
from taskq.workers.outcome import dead_letter, failure, record

MESSAGE = Message(headers={"id": "id-1", "task": "shop.pay", "x": 1}, body=b"[[], {}, {}]", priority=5, correlation_id="id-1")


def test_a_record_is_in_celerys_format() -> None:
    kept = record("id-1", "SUCCESS", {"sum": 3}, parent_id="id-0")
    meta = json.loads(kept.meta)
    assert (kept.id, kept.status) == ("id-1", "SUCCESS")
    assert meta["result"] == {"sum": 3}
    assert meta["parent_id"] == "id-0"
    assert abs(datetime.fromisoformat(meta["date_done"]).timestamp() - time.time()) < 5
    expected = Backend(app=Celery(set_as_current=False))._get_result_meta({"sum": 3}, "SUCCESS", None, None)
    assert expected.keys() <= meta.keys()


def test_a_failure_can_be_rebuilt() -> None:
    meta = json.loads(record("id-1", "FAILURE", failure("KeyError", "builtins", ["x"]), "trace").meta)
    error = rebuilt(meta)
    assert isinstance(error, KeyError)
    assert error.args == ("x",)


def test_an_exception_of_a_module_that_is_not_imported_is_not_imported() -> None:
    meta = json.loads(record("id-1", "FAILURE", failure("Bomb", "antigravity", ["x"]), "trace").meta)
    error = rebuilt(meta)
    assert isinstance(error, TaskFailed)
    assert (error.exc_type, error.traceback) == ("Bomb", "trace")


def test_a_dead_letter_says_why_and_keeps_the_message() -> None:
    outcome = dead_letter("mail", MESSAGE, "crashed", "SIGSEGV", worker="1@host", record_end=True)
    (publication,) = outcome.publish
    letter = publication.message
    assert (publication.queue, publication.delay) == ("mail.dead", 0.0)
    assert MESSAGE.headers.items() <= letter.headers.items()
    assert {name: letter.headers[f"tq-dead-{name}"] for name in ("reason", "detail", "queue", "worker")} == {
        "reason": "crashed",
        "detail": "SIGSEGV",
        "queue": "mail",
        "worker": "1@host",
    }
    assert letter.body == MESSAGE.body
    assert letter.priority is None, "a dead-letter queue has no priorities"
    assert outcome.record is not None
    assert outcome.record.status == "FAILURE"
    assert not outcome.requeue


def test_a_dead_letter_without_an_id_or_without_results_has_no_record() -> None:
    nameless = Message(headers={"id": 5}, body=b"?")
    assert dead_letter("mail", nameless, "undecodable", "?", worker="w", record_end=True).record is None
    assert dead_letter("mail", MESSAGE, "crashed", "?", worker="w", record_end=False).record is None
    by_correlation = Message(headers={}, body=b"?", correlation_id="id-7")
    kept = dead_letter("mail", by_correlation, "undecodable", "?", worker="w", record_end=True).record
    assert kept is not None
    assert kept.id == "id-7"
