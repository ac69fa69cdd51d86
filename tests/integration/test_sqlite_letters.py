from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker.sqlite.properties import correlation_id
from taskq.broker.sqlite.session import SqliteSession
from taskq.message import Publication
from tests.integration.sqlite_children import Child, consumer_of, publication, publish, settings_of


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/taskq.db"


@pytest.fixture
def session(url: str) -> Iterator[SqliteSession]:
    session = SqliteSession(settings_of(url), 5.0)
    yield session
    session.close()


def names(session: SqliteSession, queue: str) -> list[str | None]:
    return [message.correlation_id for _, message in session.letters(queue)]


def test_what_a_worker_holds_or_what_is_delayed_is_no_letter(url: str, session: SqliteSession) -> None:
    publish(url, "mail.dead", *"abc")
    publish(url, "mail.dead", "delayed", delay=60.0)
    before = session.letters("mail.dead")
    handles = [handle for handle, _ in before]
    consumer = consumer_of(url, "mail.dead", window=2)
    held = consumer.receive()
    assert names(session, "mail.dead") == ["c"]
    for handle in handles:
        before.move(handle, publication("mail", "moved"))
        before.remove(handle)
    assert (session.depth("mail"), session.depth("mail.dead")) == (1, 0)
    assert [correlation_id(delivery.properties) for delivery in held] == ["a", "b"]
    consumer.close()
    assert names(session, "mail.dead") == ["a", "b"]


def test_what_a_dead_worker_held_is_a_letter_again(url: str, session: SqliteSession) -> None:
    publish(url, "mail.dead", *"abc")
    child = Child("hold", url, "mail.dead", 3)
    assert child.line() == "3"
    assert names(session, "mail.dead") == []
    child.kill()
    assert names(session, "mail.dead") == ["a", "b", "c"]


def test_thousands_of_letters_are_seen_once_each_while_they_are_removed(url: str, session: SqliteSession) -> None:
    count = 2_500
    urgent = [publication("mail.dead", f"urgent {number}", priority=9) for number in range(150)]
    plain = [publication("mail.dead", f"{number}") for number in range(count)]
    foremost = [publication("mail.dead", "foremost", first=True)]
    session.publish([*plain, *urgent, *foremost], time.monotonic() + 10.0)
    expected = ["foremost", *(f"urgent {number}" for number in range(150)), *map(str, range(count))]
    letters, seen = session.letters("mail.dead"), []
    for number, (handle, message) in enumerate(letters):
        seen.append(message.correlation_id)
        if number % 10 == 0:
            letters.remove(handle)
    assert seen == expected
    assert session.depth("mail.dead") == count + 151 - 266


def test_a_letter_that_nobody_can_read_can_be_moved(session: SqliteSession) -> None:
    session.publish([publication("mail.dead", "a")], time.monotonic() + 5.0)
    with session.database.transaction():
        session.database.execute("update messages set properties = x'ff'")
    letters = session.letters("mail.dead")
    ((handle, message),) = letters
    assert (message.headers, message.body) == ({}, b"[]")
    letters.move(handle, Publication("mail", message))
    assert (session.depth("mail"), session.depth("mail.dead")) == (1, 0)


def test_operators_at_once_move_each_letter_once(url: str, session: SqliteSession) -> None:
    publish(url, "mail.dead", *map(str, range(300)))
    start = threading.Barrier(3)

    def operate() -> None:
        own = SqliteSession(settings_of(url), 5.0)
        letters = own.letters("mail.dead")
        start.wait()
        for handle, message in letters:
            letters.move(handle, Publication("mail", message))
        own.close()

    operators = [threading.Thread(target=operate) for _ in range(3)]
    for operator in operators:
        operator.start()
    for operator in operators:
        operator.join()
    assert sorted(names(session, "mail"), key=str) == sorted(map(str, range(300)))
    assert session.depth("mail.dead") == 0
