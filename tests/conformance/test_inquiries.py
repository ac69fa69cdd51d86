"""What operators may ask about queues and messages."""

from __future__ import annotations

import time
from pathlib import Path

import kombu
import pytest

from taskq.broker import open_session
from taskq.broker.interface import QueueStats, Session
from taskq.config import Settings
from taskq.errors import QueueMismatch
from taskq.message import SENT, Message, Publication, dead_letter_queue, trial_queue
from tests.conformance.support import message, only, process, publish, read_line
from tests.support import Stage, consuming, eventually


def call(task_id: str, **fields: object) -> Message:
    return Message(headers={"id": task_id, "task": "shop.pay", **fields}, body=b"[[], {}, {}]", correlation_id=task_id)


def test_a_queue_that_does_not_exist_has_no_stats(session: Session, queue: str) -> None:
    assert session.stats(queue) is None
    publish(session, queue, message(1))
    assert session.stats(queue) is not None


def test_messages_are_counted_and_who_fetches_them(session: Session, settings: Settings, queue: str, kind: str) -> None:
    publish(session, queue, *map(message, range(3)))
    publish(session, queue, message(3), first=True)

    def known() -> tuple[int, int | None]:
        stats = session.stats(queue)
        assert stats is not None
        return stats.ready, stats.consumers

    nobody = 0 if kind == "sqlite" else None
    eventually(lambda: known() == (4, nobody), "all are ready")
    with consuming(settings, queue, window=100) as hold:
        hold.receive(4)
        eventually(lambda: known()[0] == 0 and (known()[1] or 0) >= 1, "all are held")
    eventually(lambda: known() == (4, nobody), "all are back")


@only("sqlite")
def test_what_sqlite_knows_beside_that(session: Session, settings: Settings, queue: str) -> None:
    assert session.stats(queue) is None
    publish(session, queue, call("old", **{SENT: time.time() - 60}), call("new", **{SENT: time.time()}), message(1))
    publish(session, queue, message(2), delay=60)
    before = session.stats(queue)
    assert before is not None
    assert before.oldest == pytest.approx(60, abs=5)
    with consuming(settings, queue, window=2) as hold:
        hold.receive(2)
        stats = session.stats(queue)
        assert stats is not None
        assert stats == QueueStats(ready=1, consumers=1, held=2, delayed=1, oldest=stats.oldest)
    publish(session, f"{queue}.celery", message(1))
    of_celery = session.stats(f"{queue}.celery")
    assert of_celery is not None
    assert of_celery.oldest is None


@only("sqlite")
def test_a_message_is_found_wherever_it_is(session: Session, stage: Stage, settings: Settings, queue: str) -> None:
    publish(session, queue, call("held"))
    with consuming(settings, queue, window=1) as hold:
        hold.receive(1)
        publish(session, queue, call("first"), call("other"), call('se"cond'))
        publish(session, queue, call("later"), delay=60)
        publish(session, dead_letter_queue(queue), call("dead"))

        def found(task_id: str) -> list[tuple[object, ...]]:
            messages = session.find(task_id)
            assert messages is not None
            assert all(one.message.headers["id"] == task_id for one in messages)
            return [(one.queue, one.state, one.ahead) for one in messages]

        assert found("held") == [(queue, "held", None)]
        assert found("first") == [(queue, "ready", 0)]
        assert found('se"cond') == [(queue, "ready", 2)]
        assert found("later") == [(queue, "delayed", None)]
        assert found("dead") == [(dead_letter_queue(queue), "ready", 0)]
        assert found("never") == []
        (later,) = session.find("later") or []
        assert later.due == pytest.approx(time.time() + 60, abs=5)
    (back,) = session.find("held") or []
    assert back.state == "ready"


@only("sqlite")
def test_the_kernel_tells_who_holds_a_message(session: Session, stage: Stage, queue: str) -> None:
    publish(session, queue, call("held"))
    with process(stage, "hold", "1") as consumer:
        read_line(consumer)
        (held,) = session.find("held") or []
        assert (held.state, held.holder) == ("held", consumer.pid)


@only("quorum", "classic")
def test_rabbitmq_cannot_look_for_a_message(session: Session, queue: str) -> None:
    publish(session, queue, call("lost"))
    assert session.find("lost") is None


def test_a_queue_as_we_declare_it_is_in_order(session: Session, queue: str) -> None:
    session.verify(queue)
    assert session.stats(queue) is None, "to look is not to declare"
    publish(session, queue, message(1))
    session.verify(queue)


@only("quorum", "classic")
@pytest.mark.parametrize("of_queue", ["{}", "{}.dead", "{}.returned"])
def test_a_queue_that_is_somebody_elses_is_told_of(settings: Settings, session: Session, queue: str, of_queue: str) -> None:
    name = of_queue.format(queue)
    with kombu.Connection(settings.broker) as connection, connection.channel() as channel:
        channel.queue_declare(name, durable=True, auto_delete=False, arguments={"x-max-length": 7})
        with pytest.raises(QueueMismatch, match=name):
            session.verify(queue)
        channel.queue_delete(name)


def test_a_trial_queue_comes_alone_and_goes_without_a_trace(session: Session) -> None:
    trial = trial_queue()
    session.publish([Publication(trial, message(1)), Publication(trial, message(2), 1.0)], time.monotonic() + 10)
    eventually(lambda: session.depth(trial) == 1, "the first is there")
    assert session.stats(dead_letter_queue(trial)) is None
    session.delete(trial)
    assert session.stats(trial) is None
    session.delete(trial)


def test_a_queue_is_deleted_with_its_company(session: Session, queue: str) -> None:
    publish(session, queue, message(1))
    session.delete(queue)
    assert session.stats(queue) is None
    assert session.stats(dead_letter_queue(queue)) is None


def test_a_server_says_what_it_is(session: Session, kind: str) -> None:
    product, version = session.server()
    assert product == ("SQLite" if kind == "sqlite" else "RabbitMQ")
    assert (3, 0) < version < (9, 0)


@only("sqlite")
def test_to_look_makes_no_file(stage: Stage, settings: Settings, tmp_path: Path) -> None:
    session = open_session(settings, 5.0)
    session.stats("any")
    session.find("any")
    session.close()
    assert not list(tmp_path.glob("*.live"))
