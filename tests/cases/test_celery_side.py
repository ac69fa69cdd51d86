"""Kind 9: what Celery's monitors and clients are told of tasks, whatever messages and outcomes hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ChordError as CelerysChordError
from celery.exceptions import TaskRevokedError
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from taskq import Attempt, errors
from taskq.broker import open_line
from taskq.broker.pidbox import EVENTS, KINDS, Clock, encoded_event
from taskq.message import Message, Publication
from taskq.results.store import Record
from taskq.serialization import decode
from taskq.workers.events import Chronicle
from taskq.workers.metrics import Metrics
from taskq.workers.outcome import SUCCEEDED, Outcome, failure, revoked
from taskq.workers.portrait import LONGEST, Painter
from taskq.workers.snapshot import Child
from taskq.workers.tap import Happening, Held
from taskq.workers.vitals import Vitals
from tests.support import Stage, Worker, eventually

HELD = Held("mail", b"", b"", False)
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> bytes:
    return json.dumps(value, default=repr).encode(errors="replace")


NAMES = ("id", "task", "root_id", "parent_id", "eta", "expires", "retries", "argsrepr", "kwargsrepr", "tq-history")
DEAD = ("tq-dead-reason", "tq-dead-detail", "tq-dead-traceback")
headers = st.fixed_dictionaries({}, optional=dict.fromkeys((*NAMES, *DEAD), odd | st.just("one")))
messages = st.builds(
    lambda headers, body, encoding: Message(headers=headers, body=body, content_encoding=encoding),
    headers,
    st.binary(max_size=20) | odd.map(written),
    st.sampled_from(["utf-8", "latin-1", "no such charset", None]),
)
metas = st.binary(max_size=20) | st.fixed_dictionaries({}, optional=dict.fromkeys(("result", "traceback"), odd)).map(written)
EVENTS_OF_OUTCOMES = ("succeeded", "failed", "retried", "crashed", "rejected", "revoked", "dead-lettered", "delayed", "ignored")
outcomes = st.builds(
    lambda event, published, meta: Outcome(
        event,
        tuple(Publication("mail", message) for message in published),
        None if meta is None else Record("one", "FAILURE", meta),
    ),
    st.sampled_from(EVENTS_OF_OUTCOMES),
    st.lists(messages, max_size=2),
    st.none() | metas,
)


@settings(max_examples=150)
@given(messages, st.none() | outcomes, st.booleans(), st.booleans())
def test_whatever_a_message_and_an_outcome_hold_others_are_told_of(
    message: Message, outcome: Outcome | None, begun: bool, show: bool
) -> None:
    painter = Painter(
        lambda _properties, body: message if not body else Message(headers={"id": "good"}, body=body), "w", show_arguments=show
    )
    chronicle = Chronicle("w", painter, Clock())
    odd_one = Happening(1.0, HELD, begun=begun, outcome=outcome, seconds=0.5)
    *events, good = chronicle.tasks([odd_one, Happening(2.0, HELD._replace(body=b"[[], {}, {}]"))])
    assert (good["type"], good["uuid"]) == ("task-received", "good")
    for event in events:
        encoded = encoded_event(event)
        assert encoded is None or json.loads(encoded.decode("utf-8"))["type"].startswith("task-")
    info = painter.info(HELD, Child(0, 1, "running", 0, HELD, 1.0))
    assert {type(info[name]) for name in ("id", "name", "args", "kwargs")} <= {str, type(None)}
    assert max(len(info[name]) for name in ("args", "kwargs")) <= 10 * LONGEST


@settings(max_examples=100)
@given(st.lists(st.text(st.characters(), max_size=30) | st.just("x" * 10_000), max_size=10))
def test_whatever_tasks_are_called_metrics_are_valid(names: list[str]) -> None:
    vitals = Vitals(0.0)
    for name in names:
        vitals.decided(Outcome("crashed", (Publication("mail", Message(headers={"task": name}, body=b"")),)))
    vitals.ended("mail", SUCCEEDED)
    text = Metrics(vitals, lambda: None).answer().body.decode("utf-8")
    [outcomes] = [family for family in text_string_to_metric_families(text) if family.name == "taskq_task_outcomes"]
    assert sum(sample.value for sample in outcomes.samples if sample.name.endswith("_total")) == len(names) + 1
    assert len(text) < 100_000


ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "DeadLettered": (failure("DeadLettered", ["crashed: SIGSEGV"]), "crashed: SIGSEGV"),
    "TimeLimitExceeded": (failure("TimeLimitExceeded", ["after 3 s"]), "after 3 s"),
    "WorkerLost": (failure("WorkerLost", ["lost"]), "lost"),
    "TaskRevokedError": (revoked("terminated"), "terminated"),
    "ChordError": (
        {"exc_type": "ChordError", "exc_message": ["Dependency a raised"], "exc_module": "celery.exceptions"},
        "Dependency a raised",
    ),
}


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", ENDS)
def test_celerys_clients_rebuild_what_became_of_a_task(name: str, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With taskq imported they find its own class, and elsewhere make one of the same name."""
    if not installed:
        monkeypatch.delitem(sys.modules, "taskq.errors")
    described, text = ENDS[name]
    with closing(Celery("reader", backend="cache+memory://", set_as_current=False)) as celery:
        error = celery.backend.exception_to_python(decode(json.dumps(described).encode()))
    ours = getattr(errors, name, None) if described["exc_module"] == "taskq.errors" else None
    if ours is not None and installed:
        assert type(error) is ours
    else:
        assert type(error).__name__ == name
        assert isinstance(error, {"TaskRevokedError": TaskRevokedError, "ChordError": CelerysChordError}.get(name, Exception))
    assert text in str(error)


Listen = Callable[[str], list[dict[str, Any]]]


@contextmanager
def watched(stage: Stage, *options: str) -> Iterator[tuple[Worker, Listen]]:
    """A worker that tells of events without being asked to, and what it has told of a task."""
    heard: list[dict[str, Any]] = []

    def take(message: Message) -> None:
        told = decode(message.body)
        heard.extend(told if isinstance(told, list) else [told])

    with closing(open_line(stage.effective(), "monitor", 5.0)) as line:
        line.listen(EVENTS, KINDS[EVENTS], f"monitor.{stage.queue}", "#", take)

        def told_of(task_id: str) -> list[dict[str, Any]]:
            line.turn()
            return [event for event in heard if event.get("uuid") == task_id]

        with stage.worker("tests.apps.trouble:app", "--events", *options) as worker:
            worker.started()
            eventually(lambda: told_of("") or heard, "it tells of itself")
            yield worker, told_of


def test_events_tell_of_ends_that_are_not_recorded(stage: Stage) -> None:
    """Results are off, or not wanted."""
    stage.settings["backend"] = "off"
    client = stage.client()
    with watched(stage) as (_, told_of):
        failed = client.send_task("flaky", [1, "ValueError"])
        expired = client.send_task("good", ["x"], expires=datetime.now(UTC) - timedelta(seconds=5))
        ends = {
            failed.id: lambda: [one["exception"] for one in told_of(failed.id) if one["type"] == "task-failed"],
            expired.id: lambda: [one["expired"] for one in told_of(expired.id) if one["type"] == "task-revoked"],
        }
        assert eventually(ends[failed.id], "the failure is told of") == ["ValueError('no. 0')"]
        assert "raise kinds[kind]" in told_of(failed.id)[-1]["traceback"]
        assert eventually(ends[expired.id], "the expiry is told of") == [True]
        assert "task-started" not in [one["type"] for one in told_of(expired.id)]


def test_a_task_that_nobody_knows_is_not_said_to_have_started(stage: Stage) -> None:
    with watched(stage, "--unknown-task-ttl", "0.5") as (_, told_of):
        unknown = stage.client().send_task("no such task")
        eventually(lambda: any(one["type"] == "task-failed" for one in told_of(unknown.id)), "it is dead-lettered")
        kinds = [one["type"] for one in told_of(unknown.id)]
        assert set(kinds) == {"task-received", "task-failed"}
        assert "unknown task" in told_of(unknown.id)[-1]["exception"]


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def kept(request: pytest.FixtureRequest, sqlite_stage: Stage) -> Stage:
    """A stage with each backend that keeps results."""
    if request.param != "sqlite":
        sqlite_stage.settings["backend"] = request.getfixturevalue(request.param).url
    return sqlite_stage


def test_between_two_attempts_a_task_is_in_retry(kept: Stage) -> None:
    client = kept.client()
    with kept.worker("tests.apps.trouble:app"):
        again = client.send_task("again", [1, 3600.0])
        eventually(lambda: again.status == "RETRY", "it is to run again")
        assert not again.ready()
        assert not again.wait(0.1)
        meta = again.meta()
        assert (meta["result"]["exc_type"], meta["result"]["exc_message"]) == ("ValueError", ["attempt 1"])
        assert 'raise attempt.retry(exc=ValueError(f"attempt' in meta["traceback"]
        with closing(Celery("reader", backend="cache+memory://", set_as_current=False)) as celery:
            seen = celery.backend.meta_from_decoded(meta)
        assert (seen["status"], repr(seen["result"])) == ("RETRY", "ValueError('attempt 1')")
        soon = client.send_task("again", [2, 0.0])
        assert soon.get(timeout=15) == 2
        assert soon.status == "SUCCESS"


def test_a_running_task_can_read_its_message_in_celerys_words() -> None:
    attempt = Attempt(
        "one", "mail", queue="mails", priority=5, correlation_id="one", reply_to="caller",
        headers={"timelimit": [30, 20], "group": "g", "eta": None, "expires": "2030-01-01T00:00:00+00:00"},
    )  # fmt: skip
    request = attempt.request
    assert request.timelimit == (30, 20)
    assert (request.group, request.eta, request.expires) == ("g", None, "2030-01-01T00:00:00+00:00")
    assert request.properties["correlation_id"] == request.correlation_id == "one"
    assert request.properties["reply_to"] == request.reply_to == "caller"
    assert request.delivery_info == {"exchange": "", "routing_key": "mails", "priority": 5, "redelivered": False}
    assert Attempt("one", "mail", headers={"timelimit": "x", "group": 5}).timelimit == (None, None)
