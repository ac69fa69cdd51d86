from __future__ import annotations

import resource
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker.sqlite.consumer import SqliteConsumer
from taskq.broker.sqlite.properties import correlation_id
from taskq.broker.sqlite.session import SqliteSession
from taskq.control import REVOKED_SECONDS, Control, Pause, Revoke, encode
from tests.integration.sqlite_children import consumer_of, publication, publish, settings_of
from tests.support import Hold, eventually


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/taskq.db"


@pytest.fixture
def consumer(url: str) -> Iterator[SqliteConsumer]:
    consumer = consumer_of(url, "mail")
    yield consumer
    consumer.close()


@pytest.fixture
def session(url: str) -> Iterator[SqliteSession]:
    session = SqliteSession(settings_of(url), 5.0)
    yield session
    session.close()


def say(session: SqliteSession, *controls: Control) -> None:
    for control in controls:
        session.control(control, time.monotonic() + 5.0)


def keep_silently(session: SqliteSession, key: str, entry: bytes) -> None:
    """As a process that dies between the commit and the bell leaves it."""
    with session.database.transaction():
        session.database.execute("insert into controls (key, entry) values (?, ?)", (key, entry))


def test_revocations_are_forgotten_after_a_month_and_pauses_are_not(session: SqliteSession) -> None:
    now = time.time()
    old, nearly = Revoke("old", at=now - REVOKED_SECONDS - 1), Revoke("nearly", at=now - REVOKED_SECONDS + 60)
    say(session, Pause("mail", at=1.0), old, nearly, Revoke("of no known time"))
    assert session.controls() == [Pause("mail", at=1.0), nearly, Revoke("of no known time")]
    assert session.database.execute("select count(*) from controls") == [(3,)]


def test_an_entry_whose_bell_was_lost_is_heard_within_seconds(session: SqliteSession, consumer: SqliteConsumer) -> None:
    consumer.set_window(0)
    assert consumer.controls() == []
    keep_silently(session, "pause mail", encode(Pause("mail")))
    heard: list[Control] = []

    def hears() -> bool:
        # Read only when the descriptor says so.
        readable, _, _ = select.select([consumer.fileno()], [], [], min(0.1, consumer.tick()))
        if readable:
            consumer.receive()
            heard.extend(consumer.controls())
        return bool(heard)

    eventually(hears, "the entry is heard", 5.0)
    assert heard == [Pause("mail")]


def test_a_bell_that_cannot_be_rung_fails_no_publish(session: SqliteSession, consumer: SqliteConsumer) -> None:
    assert Hold(consumer).quiet(0.05)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    session.publish([publication("mail", "a")], time.monotonic() + 5)
    held = Hold(consumer).receive(1)
    try:
        # What is open stays open, and nothing else can be opened: to ring a bell, for example.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        session.publish([publication("mail", "b"), publication("mail", "later", delay=0.01)], time.monotonic() + 5)
        session.control(Pause("other"), time.monotonic() + 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert select.select([consumer.fileno()], [], [], 0.0)[0] == []
    held += Hold(consumer).receive(2)
    assert sorted(str(correlation_id(delivery.properties)) for delivery in held) == ["a", "b", "later"]
    eventually(lambda: consumer.controls() == [Pause("other")], "the entry is heard")


def test_an_entry_of_a_newer_taskq_is_passed_over(session: SqliteSession, consumer: SqliteConsumer) -> None:
    keep_silently(session, "dance", b'{"type":"dance"}')
    say(session, Pause("mail"))
    eventually(lambda: consumer.receive() or consumer.controls() == [Pause("mail")], "the known entry is heard")
    assert session.controls() == [Pause("mail")]


def test_a_replaced_entry_is_heard_again_even_if_it_was_the_last(session: SqliteSession, consumer: SqliteConsumer) -> None:
    for at in (1.0, 2.0, 3.0):
        say(session, Pause("mail", at=at))
        consumer.receive()
        assert consumer.controls() == [Pause("mail", at=at)]
    assert session.controls() == [Pause("mail", at=3.0)]


def test_an_idle_consumer_of_a_paused_queue_sleeps(url: str, consumer: SqliteConsumer) -> None:
    consumer.set_paused(frozenset(["mail"]))
    publish(url, "mail", *map(str, range(100)))
    deadline, turns = time.monotonic() + 1.5, 0
    while (left := deadline - time.monotonic()) > 0:
        select.select([consumer.fileno()], [], [], min(left, consumer.tick()))
        assert consumer.receive() == []
        turns += 1
    assert turns < 12
