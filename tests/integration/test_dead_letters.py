"""Dead letters through the API: looking, replaying, purging. On real brokers, with real kills."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import kombu
import pytest

from taskq import TaskQ, graveyard
from taskq.control import Pause, Resume, Revoke
from taskq.dead import Filter, Selection
from taskq.errors import BrokerUnreachable, ConfigurationError, ConnectionLost, DatabaseError
from taskq.message import Message, Publication, dead_letter_queue
from tests.servers import RabbitMQ, free_port
from tests.support import ROOT, Stage, eventually

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def letter(number: int, **headers: Any) -> Message:
    """A dead letter, as a worker makes it."""
    made = Message(
        headers={"lang": "py", "task": "add", "id": f"id-{number}", "retries": 1, "eta": None, "expires": None},
        body=b"[[%d, 1], {}, {}]" % number,
        correlation_id=f"id-{number}",
    )
    dead = {"tq-dead-reason": "crashed", "tq-dead-at": LONG_AGO.timestamp() + number, "tq-crashes": 3, **headers}
    return made.with_headers(**dead)


def bury(app: TaskQ, letters: Iterable[Message], queue: str | None = None) -> None:
    to = dead_letter_queue(queue or app.settings.default_queue)
    app.publisher.publish([Publication(to, message) for message in letters])


def ids(app: TaskQ, **selection: Any) -> list[str | None]:
    return [dead.id for dead in app.dead_letters(**selection)]


def named(count: int, start: int = 0) -> list[str]:
    return [f"id-{number}" for number in range(start, count)]


def sent(stage: Stage, count: int) -> list[str]:
    """The ids of the messages that are in the queue again."""
    eventually(lambda: (stage.depth() or 0) == count, f"{count} messages in the queue")
    return [str(message.headers["id"]) for message in stage.drain(count)]


def left(stage: Stage, count: int) -> None:
    """So many letters are there for anybody to see."""
    eventually(lambda: stage.depth(dead_letter_queue(stage.queue)) == count, f"{count} dead letters")


def test_letters_are_read_oldest_first_and_stay(stage: Stage) -> None:
    app = stage.client()
    bury(app, [letter(number, **{"tq-dead-detail": "why", "tq-deliveries": 2}) for number in range(250)])
    found = list(app.dead_letters())
    assert [dead.id for dead in found] == named(250)
    # RabbitMQ may mix what somebody has looked at.
    assert sorted(map(str, ids(app))) == sorted(named(250))
    assert [dead.arguments() for dead in found[:2]] == [([0, 1], {}), ([1, 1], {})]
    first = found[0]
    assert (first.queue, first.reason, first.detail, first.last_at) == (stage.queue, "crashed", "why", LONG_AGO)
    assert (first.retries, first.crashes, first.deliveries) == (1, 3, 3)
    left(stage, 250)


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        ({}, named(4)),
        ({"task": "mail"}, ["id-1"]),
        ({"reason": "time limit"}, ["id-2"]),
        ({"since": LONG_AGO + timedelta(seconds=2)}, ["id-2", "id-3"]),
        ({"ids": ["id-3", "id-0", "id-9"]}, ["id-0", "id-3"]),
        ({"ids": []}, []),
        ({"task": "add", "reason": "crashed", "since": LONG_AGO + timedelta(seconds=1)}, ["id-3"]),
        ({"reason": "no such"}, []),
    ],
)
def test_what_is_listed_is_what_is_replayed_and_what_is_purged(stage: Stage, selection: Selection, found: list[str]) -> None:
    app = stage.client()
    letters = [letter(0), letter(1, task="mail"), letter(2, **{"tq-dead-reason": "time limit"}), letter(3)]
    bury(app, letters)
    others = [name for name in named(4) if name not in found]
    assert ids(app, **selection) == found
    assert app.replay(dry_run=True, **selection) == app.purge_dead(dry_run=True, **selection) == len(found)
    assert ids(app) == named(4)
    assert app.replay(**selection) == len(found)
    assert ids(app) == others
    assert sent(stage, len(found)) == found
    bury(app, [made for made in letters if made.headers["id"] in found])
    assert app.purge_dead(**selection) == len(found)
    assert ids(app) == others
    assert not stage.depth()


def test_a_replayed_message_is_as_it_was_with_its_counters_at_the_start(stage: Stage) -> None:
    app = stage.client()
    bury(app, [letter(7, **{"tq-history": [{"worker": "a"}], "tq-alone": 1.0, "mine": "kept"})])
    assert app.replay(stage.queue) == 1
    eventually(lambda: stage.depth() == 1)
    (message,) = stage.drain(1)
    assert message.body == b"[[7, 1], {}, {}]"
    assert message.correlation_id == "id-7"
    assert {name: message.headers.get(name) for name in ("id", "task", "retries", "mine")} == {
        "id": "id-7",
        "task": "add",
        "retries": 0,
        "mine": "kept",
    }
    assert message.headers["tq-history"] == [{"worker": "a"}]
    assert not [name for name in message.headers if name.startswith("tq-dead-") or name in ("tq-crashes", "tq-alone")]


def test_queues_that_are_not_there_hold_no_letters(stage: Stage) -> None:
    app = stage.client()
    assert ids(app) == []
    assert (app.replay(), app.purge_dead(), app.purge_dead(task="add")) == (0, 0, 0)
    assert stage.depth(dead_letter_queue(stage.queue)) is None


def test_a_dead_letter_queue_stands_for_its_queue_and_no_queue_for_all_of_the_apps(stage: Stage) -> None:
    app = stage.client()
    other = f"{stage.queue}.other"
    app.task(name="add", queue=other)(print)
    bury(app, [letter(0)])
    bury(app, [letter(1)], other)
    assert ids(app) == ["id-0", "id-1"]
    assert ids(app, queue=other) == ids(app, queue=dead_letter_queue(other)) == ["id-1"]
    assert app.replay(dead_letter_queue(other)) == 1
    assert stage.depth(other) == 1
    assert app.purge_dead() == 1
    app.publisher.purge(other)


def test_a_rate_is_kept_and_the_queue_is_opened_again_and_again(stage: Stage) -> None:
    app = stage.client()
    bury(app, map(letter, range(10)))
    started = time.monotonic()
    replaying = graveyard.replay(app.publisher, [stage.queue], Filter(), rate=40, hold=0.06)
    assert [dead.id for dead in replaying] == named(10)
    assert time.monotonic() - started >= 9 / 40
    assert sent(stage, 10) == named(10)
    for rate in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="above 0"):
            app.replay(rate=rate)


def test_what_dies_again_meanwhile_is_not_replayed_again(stage: Stage) -> None:
    app = stage.client()
    bury(app, map(letter, range(5)))
    replayed = []
    for number, dead in enumerate(graveyard.replay(app.publisher, [stage.queue], Filter(), rate=100, hold=0.0)):
        replayed.append(dead.id)
        bury(app, [letter(number, **{"tq-dead-at": time.time() + 0.01})])
        assert len(replayed) <= 5
    assert replayed == named(5)
    left(stage, 5)


def test_whoever_stops_looking_lets_go_of_the_rest(stage: Stage) -> None:
    app = stage.client()
    bury(app, map(letter, range(300)))
    looking = app.dead_letters()
    assert next(looking).id == "id-0"
    # The app goes on meanwhile, on another session.
    app.send_task("add", [1, 2])
    del looking
    left(stage, 300)
    replaying = graveyard.replay(app.publisher, [stage.queue], Filter())
    assert [next(replaying).id, next(replaying).id] == named(2)
    del replaying
    left(stage, 298)
    assert ids(app) == named(300, start=2)
    assert stage.depth() == 3


def test_two_who_replay_at_once_send_each_letter_once(stage: Stage) -> None:
    first, second = stage.client(), stage.client()
    bury(first, map(letter, range(400)))
    counts: list[int] = []
    gate = threading.Barrier(2)

    def replay(app: TaskQ) -> None:
        gate.wait()
        # Whoever finds the letters in the other's hands comes again for what was let go.
        while stage.depth(dead_letter_queue(stage.queue)) or not counts:
            counts.append(app.replay())

    threads = [threading.Thread(target=replay, args=(app,)) for app in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(counts) == 400
    assert sorted(sent(stage, 400)) == sorted(named(400))
    left(stage, 0)


def test_what_a_worker_gave_up_on_succeeds_once_it_is_replayed_to_one_that_can(stage: Stage) -> None:
    app = stage.client()
    with stage.worker("tests.apps.basic:app", "--unknown-task-ttl", "0") as worker:
        result = app.send_task("good", ["key"], expires=60.0)
        eventually(lambda: ids(app, reason="unknown task") == [result.id], "a letter that says why")
        assert worker.stop() == 0
    (dead,) = app.dead_letters()
    assert (dead.task, dead.arguments(), dead.signal) == ("good", (["key"], {}), None)
    assert dead.last_at is not None
    assert abs(dead.last_at.timestamp() - time.time()) < 60
    assert app.replay() == 1
    with stage.worker("tests.apps.trouble:app"):
        eventually(lambda: app.result(result.id).status == "SUCCESS", "the task succeeds")
    assert app.result(result.id).get() == "key"
    left(stage, 0)


def test_what_crashes_again_after_a_replay_has_as_many_crashes_as_before(stage: Stage) -> None:
    app = stage.client()
    with stage.worker("tests.apps.trouble:app"):
        app.send_task("segfault")
        for lives in (1, 2):
            eventually(lambda: ids(app, reason="crashed"), "a letter")
            (dead,) = app.dead_letters()
            assert (dead.crashes, dead.signal) == (3, "SIGSEGV")
            assert "string_at" in (dead.traceback or "")
            assert len(dead.message.headers["tq-history"]) == 3 * lives
            assert dead.first_at is not None
            assert dead.last_at is not None
            assert dead.first_at < dead.last_at
            if lives == 1:
                assert app.replay(dead.queue) == 1


def kill_a_replay(stage: Stage, number: int) -> None:
    """Start one in a process of its own, and end it by this signal when it is well under way."""
    before = stage.depth() or 0
    code = f"from taskq import TaskQ; TaskQ('killed', default_queue={stage.queue!r}).replay()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=stage.environment(), stderr=subprocess.DEVNULL
    ) as process:
        eventually(lambda: (stage.depth() or 0) > before + 50, "letters are being replayed")
        process.send_signal(number)
    assert process.returncode == -number


def in_both(stage: Stage) -> int:
    return (stage.depth() or 0) + (stage.depth(dead_letter_queue(stage.queue)) or 0)


def test_a_replay_that_is_killed_or_interrupted_in_the_middle_loses_nothing(stage: Stage) -> None:
    app, kills = stage.client(), (signal.SIGKILL, signal.SIGINT)
    bury(app, map(letter, range(2000)))
    for number in kills:
        kill_a_replay(stage, number)
        eventually(lambda: in_both(stage) >= 2000, "what it held is back")
    assert ids(app), "the kills came too late to show anything"
    app.replay()
    counted = Counter(sent(stage, stage.depth() or 0))
    assert set(counted) == set(named(2000))
    doubled = sum(counted.values()) - 2000
    assert doubled <= (0 if stage.broker.startswith("sqlite") else len(kills))
    left(stage, 0)


def test_a_locked_file_ends_a_replay_and_the_error_says_what_was_sent(sqlite_stage: Stage) -> None:
    app = sqlite_stage.client(publish_timeout=0.2)
    bury(app, map(letter, range(10)))
    replaying = graveyard.replay(app.publisher, [sqlite_stage.queue], Filter())
    stranger = sqlite3.connect(sqlite_stage.folder / "taskq.db", isolation_level=None)

    def interrupted() -> Any:
        yield from (next(replaying), next(replaying))
        stranger.execute("begin immediate")
        yield from replaying

    with pytest.raises(DatabaseError, match="locked") as failed:
        graveyard.count(interrupted())
    stranger.close()
    assert failed.value.confirmed == ("id-0", "id-1")
    assert app.replay() == 8
    assert sent(sqlite_stage, 10) == named(10)


def test_a_connection_that_breaks_ends_a_replay_and_loses_nothing(amqp_stage: Stage, rabbitmq: RabbitMQ) -> None:
    app = amqp_stage.client()
    bury(app, map(letter, range(10)))
    replaying = graveyard.replay(app.publisher, [amqp_stage.queue], Filter())
    assert [next(replaying).id, next(replaying).id] == named(2)
    rabbitmq.control("close_all_connections", "test")
    with pytest.raises(ConnectionLost):
        list(replaying)
    eventually(lambda: (amqp_stage.depth(dead_letter_queue(amqp_stage.queue)) or 0) >= 8, "the rest is back")
    # The idle sessions have died as well, and are replaced silently.
    app.replay()
    counted = Counter(sent(amqp_stage, amqp_stage.depth() or 0))
    assert set(counted) == set(named(10))
    assert sum(counted.values()) <= 11


def test_a_broker_that_is_away(queue: str) -> None:
    app = TaskQ("away", broker=f"amqp://127.0.0.1:{free_port()}//", publish_timeout=1.0)
    asking: tuple[Callable[[], Any], ...] = (
        lambda: list(app.dead_letters()),
        app.replay,
        app.paused,
        lambda: app.pause(queue),
        app.result("1").revoke,
    )
    for ask in asking:
        started = time.monotonic()
        with pytest.raises(BrokerUnreachable):
            ask()
        assert time.monotonic() - started < 2.0


def test_what_rabbitmq_dead_letters_itself_is_a_letter_too(amqp_stage: Stage) -> None:
    amqp_stage.settings["delivery_limit"] = 1
    app = amqp_stage.client()
    result = app.send_task("add", [1, 2])
    with kombu.Connection(amqp_stage.broker) as connection, connection.channel() as channel:

        def returned() -> bool:
            message = channel.basic_get(amqp_stage.queue)
            if message is not None:
                channel.basic_reject(message.delivery_tag, requeue=True)
            return amqp_stage.depth(dead_letter_queue(amqp_stage.queue)) == 1

        eventually(returned, "RabbitMQ has had enough of the message")
    (dead,) = app.dead_letters(reason="delivery limit")
    assert (dead.id, dead.task, dead.queue) == (result.id, "add", amqp_stage.queue)
    assert dead.last_at is not None
    assert abs(dead.last_at.timestamp() - time.time()) < 60
    assert app.replay(reason="delivery limit") == 1
    assert sent(amqp_stage, 1) == [result.id]


def test_what_operators_say_is_kept_for_every_worker(stage: Stage) -> None:
    app, queue = stage.client(), stage.queue
    started = time.time()
    result = app.send_task("add", [1, 2])
    result.revoke()
    app.result(f"{queue}-2").revoke(terminate=True)
    app.pause(queue)
    app.pause(f"{queue}.other")
    app.resume(f"{queue}.other")
    assert app.paused() & {queue, f"{queue}.other"} == {queue}
    about_us = [
        entry
        for entry in stage.client().publisher.controls()
        if (entry.id if isinstance(entry, Revoke) else entry.queue).startswith((result.id, queue))
    ]
    assert all(started <= entry.at <= time.time() for entry in about_us)
    assert [(entry.id, entry.terminate) for entry in about_us if isinstance(entry, Revoke)] == [
        (result.id, False),
        (f"{queue}-2", True),
    ]
    assert [(type(entry), entry.queue) for entry in about_us if not isinstance(entry, Revoke)] == [
        (Pause, queue),
        (Resume, f"{queue}.other"),
    ]
    app.resume(queue)
    assert queue not in app.paused()
    # Calls are accepted all the while.
    assert stage.depth() == 1
