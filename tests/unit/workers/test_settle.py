"""Settling on a real SQLite broker: follow-ups, then results, then acks; or nothing, and all of it the next time."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from taskq import config
from taskq.broker.interface import Delivery
from taskq.broker.sqlite.consumer import SqliteConsumer
from taskq.broker.sqlite.properties import decode
from taskq.broker.sqlite.session import SqliteSession
from taskq.config import Settings
from taskq.errors import DatabaseError
from taskq.message import Message, Publication
from taskq.results.ledger import UNDECIDED, Change, tick_entry
from taskq.results.sqlite import SqliteResults
from taskq.workers import note
from taskq.workers.last_resort import LastResort
from taskq.workers.outcome import SUCCEEDED, Event, Outcome, again, dead_letter, record
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot

COUNT = 5


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.load({"broker": f"sqlite:///{tmp_path}/broker.db"}, environment={})


@pytest.fixture
def session(settings: Settings) -> Iterator[SqliteSession]:
    session = SqliteSession(settings, 5.0)
    session.publish([Publication("mail", message(f"id-{number}")) for number in range(COUNT)], time.monotonic() + 5.0)
    yield session
    session.close()


@pytest.fixture
def consumer(settings: Settings, session: SqliteSession) -> Iterator[SqliteConsumer]:
    consumer = SqliteConsumer(settings, ["mail"])
    consumer.connect(5.0)
    consumer.set_window(COUNT)
    yield consumer
    consumer.close()


def last_resort(settings: Settings) -> LastResort:
    return LastResort(settings, "worker", decode, lambda _: "default")


def message(task_id: str) -> Message:
    return Message(headers={"id": task_id, "task": "shop.pay"}, body=b"[[], {}, {}]", correlation_id=task_id)


def outcome(number: int, size: int = 10) -> Outcome:
    """A success with a follow-up message and a result."""
    follow_up = Publication("next", message(f"next-{number}"))
    return Outcome("succeeded", (follow_up,), record(message(f"id-{number}"), "SUCCESS", "x" * size))


def held(settler: Settler, consumer: SqliteConsumer, size: int = 10) -> list[Delivery]:
    deliveries = consumer.receive()
    assert len(deliveries) == COUNT
    for number, delivery in enumerate(deliveries):
        settler.add(delivery, outcome(number, size))
    return deliveries


def undone(session: SqliteSession, results: SqliteResults) -> bool:
    """Nothing has been acked, given back, published or stored."""
    owned = session.database.execute("select count(*) from messages where queue = 'mail' and owner is not null")
    assert owned == [(COUNT,)]
    assert session.depth("mail") == 0
    assert not session.depth("next")
    return all(results.fetch([f"id-{number}"])[0] is None for number in range(COUNT))


def settled(session: SqliteSession, results: SqliteResults) -> bool:
    """Everything has, and once."""
    assert session.database.execute("select count(*) from messages where queue = 'mail'") == [(0,)]
    assert session.depth("next") == COUNT
    return all(results.fetch([f"id-{number}"])[0] is not None for number in range(COUNT))


def test_one_pass_settles_everything(settings: Settings, session: SqliteSession, consumer: SqliteConsumer) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    held(settler, consumer)
    assert undone(session, results)
    settler.settle(consumer)
    assert settler.settlements == []
    assert settled(session, results)


def test_a_full_disk_undoes_the_whole_pass(settings: Settings, session: SqliteSession, consumer: SqliteConsumer) -> None:
    assert consumer.database is not None
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    held(settler, consumer, size=100_000)
    ((pages,),) = consumer.database.execute("pragma page_count")
    consumer.database.execute(f"pragma max_page_count = {pages + 5}")
    for _ in range(2):
        with pytest.raises(DatabaseError, match="full"):
            settler.settle(consumer)
        assert len(settler.settlements) == COUNT
        assert undone(session, results)
    consumer.database.execute("pragma max_page_count = 1000000")
    settler.settle(consumer)
    assert settled(session, results)


def test_results_in_a_locked_file_hold_the_acks_back(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer, tmp_path: Path
) -> None:
    results = SqliteResults(f"sqlite:///{tmp_path}/results.db", 60.0)
    results._database.set_busy_timeout(0.05)
    settler = Settler(results, last_resort(settings))
    held(settler, consumer)
    stranger = sqlite3.connect(tmp_path / "results.db", isolation_level=None)
    stranger.execute("begin immediate")
    with pytest.raises(DatabaseError, match=r"results\.db is locked"):
        settler.settle(consumer)
    assert undone(session, results)
    stranger.execute("rollback")
    stranger.close()
    settler.settle(consumer)
    assert settled(session, results)
    results.close()


def test_a_broker_that_is_locked_leaves_results_that_the_next_pass_overwrites(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer, tmp_path: Path
) -> None:
    assert consumer.database is not None
    results = SqliteResults(f"sqlite:///{tmp_path}/results.db", 60.0)
    settler = Settler(results, last_resort(settings))
    held(settler, consumer)
    consumer.database.set_busy_timeout(0.05)
    stranger = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
    stranger.execute("begin immediate")
    with pytest.raises(DatabaseError, match=r"broker\.db is locked"):
        settler.settle(consumer)
    stranger.execute("rollback")
    stranger.close()
    assert undone(session, results)
    settler.settle(consumer)
    assert settled(session, results)
    results.close()


def test_every_kind_of_outcome(settings: Settings, session: SqliteSession, consumer: SqliteConsumer) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    deliveries = consumer.receive()
    end = record(message("id-2"), "FAILURE", None)
    letter = dead_letter("mail", message("id-2"), "crashed", "SIGSEGV", worker="w", end=end)
    kinds = [
        SUCCEEDED,
        again("given back", "mail", message("id-1"), first=True),
        letter,
        Outcome("delayed", (Publication("mail", message("id-3"), 60.0),)),
        Outcome("failed"),
    ]
    for delivery, kind in zip(deliveries, kinds, strict=True):
        settler.add(delivery, kind)
    consumer.set_window(0)
    settler.settle(consumer)
    assert (session.depth("mail"), session.depth("mail.dead")) == (1, 1)
    assert session.database.execute("select count(*) from messages where due is not null") == [(1,)]
    assert session.database.execute("select count(*) from messages") == [(3,)]
    [kept] = results.fetch(["id-2"])
    assert kept is not None
    assert kept.status == "FAILURE"


def test_what_was_not_settled_is_handed_out_when_the_connection_is_lost(settings: Settings, consumer: SqliteConsumer) -> None:
    settler = Settler(None, last_resort(settings))
    deliveries = held(settler, consumer)
    assert [settlement.delivery for settlement in settler.drop_lost()] == deliveries
    assert settler.settlements == []


@pytest.fixture
def slot() -> Slot:
    descriptor = note.create(1)
    slot = Slot(0, note.Note(descriptor, 0))
    os.close(descriptor)
    return slot


def test_a_beginning_is_recorded_and_its_message_stays_unacked(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer, slot: Slot
) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    delivery, dead, *_ = consumer.receive()
    begun = Outcome("begun", record=record(message("id-0"), "STARTED", {"retries": 0}))
    settler.add(delivery, begun, (slot, 1))
    settler.add(dead, Outcome("begun", record=record(message("id-1"), "STARTED", {})), (slot, 2))
    assert settler.forget_beginning(dead)
    assert not settler.forget_beginning(dead)
    assert settler.answers == []
    settler.settle(consumer)
    assert (settler.answers, settler.settlements) == ([(slot, 1, True, False)], [])
    [kept] = results.fetch(["id-0"])
    assert kept is not None
    assert kept.status == "STARTED"
    assert results.fetch(["id-1"]) == [None]
    assert session.database.execute("select count(*) from messages where queue = 'mail'") == [(COUNT,)]


def test_of_all_copies_of_a_tick_the_first_that_asks_may_run_and_it_is_told_with_the_next_pass(
    settings: Settings, consumer: SqliteConsumer, slot: Slot
) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    assert results.ledger is not None
    assert results.ledger.swap([Change(tick_entry("t"), None, UNDECIDED)])
    settler = Settler(results, last_resort(settings))
    first, second, third, *_ = consumer.receive()

    def ask(number: int, delivery: Delivery, copy: str) -> None:
        settler.ask(delivery, message("id-0").with_headers(tq_tick="t", tq_tick_copy=copy), (slot, number))

    ask(1, first, "a")
    ask(2, second, "b")
    ask(3, third, "died")
    assert settler.forget_beginning(third)
    settler.settle(consumer)
    assert (settler.answers, settler.idle) == ([(slot, 1, True, False), (slot, 2, False, False)], True)
    settler.answers.clear()
    ask(1, first, "a")
    settler.settle(consumer)
    assert settler.answers == [(slot, 1, True, False)], "it came back, and it is still the one"


def test_where_nobody_keeps_a_ledger_a_tick_runs(settings: Settings, consumer: SqliteConsumer, slot: Slot) -> None:
    settler = Settler(None, last_resort(settings))
    delivery, *_ = consumer.receive()
    settler.ask(delivery, message("id-0").with_headers(tq_tick="t", tq_tick_copy="a"), (slot, 1))
    settler.settle(consumer)
    assert settler.answers == [(slot, 1, True, False)]


IMPOSSIBLE = [
    Outcome("succeeded", (Publication("replies", message("reply"), reply=True),)),
    Outcome("succeeded", (Publication("next", message("id").with_headers(x=object())),)),
    Outcome("succeeded", (Publication("next\udce9", message("id")),)),
]


@pytest.mark.parametrize("impossible", IMPOSSIBLE, ids=["no route", "no JSON", "no text"])
@pytest.mark.parametrize("place", range(COUNT))
def test_what_can_never_take_effect_is_a_dead_letter_and_its_neighbours_are_settled_in_the_same_pass(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer, impossible: Outcome, place: int
) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    for number, delivery in enumerate(consumer.receive()):
        settler.add(delivery, impossible if number == place else outcome(number))
    settler.settle(consumer)
    assert session.depth("next") == COUNT - 1
    [bad] = settler.settlements
    for _ in range(10):
        bad.due = 0.0
        settler.settle(consumer)
        if not settler.settlements:
            break
    assert (settler.settlements, session.depth("mail.dead")) == ([], 1)
    assert session.database.execute("select count(*) from messages where queue = 'mail'") == [(0,)]
    [end] = results.fetch([f"id-{place}"])
    assert end is not None
    assert end.status == "FAILURE"


def test_one_that_a_full_disk_has_no_room_for_does_not_keep_the_others_from_being_settled(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer
) -> None:
    assert consumer.database is not None
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    for number, delivery in enumerate(consumer.receive()):
        settler.add(delivery, outcome(number, 1_000_000 if number == 1 else 10))
    ((pages,),) = consumer.database.execute("pragma page_count")
    consumer.database.execute(f"pragma max_page_count = {pages + 20}")
    for _ in range(3):
        with suppress(DatabaseError):
            settler.settle(consumer)
    assert session.depth("next") == COUNT - 1
    [large] = settler.settlements
    consumer.database.execute("pragma max_page_count = 1000000")
    large.due = 0.0
    settler.settle(consumer)
    assert settled(session, results)


@pytest.mark.parametrize("event", ["failed", "dead-lettered"])
def test_an_errback_that_cannot_be_sent_leaves_the_end_and_its_siblings_as_they_are(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer, event: Event
) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    delivery, *_ = consumer.receive()
    good, bad = Publication("next", message("errback")), Publication("replies", message("reply"), reply=True)
    end = record(message("id-0"), "FAILURE", {"exc_type": "ValueError", "exc_message": ["its own"], "exc_module": "builtins"})
    letter = dead_letter("mail", message("id-0"), "rejected", "no", worker="w", end=end).publish
    own = letter if event == "dead-lettered" else ()
    settler.add(delivery, Outcome(event, (*own, good, bad, good), end))
    for _ in range(10):
        if settler.settlements:
            settler.settle(consumer)
    assert settler.settlements == []
    assert (session.depth("next"), session.depth("mail.dead")) == (2, len(own))
    [kept] = results.fetch(["id-0"])
    assert kept is not None
    assert b"its own" in kept.meta


def test_of_follow_ups_each_is_sent_once_though_one_is_refused(
    settings: Settings, session: SqliteSession, consumer: SqliteConsumer
) -> None:
    results = SqliteResults(settings.broker, 60.0, consumer.database)
    settler = Settler(results, last_resort(settings))
    delivery, *_ = consumer.receive()
    good, bad = Publication("next", message("link")), Publication("replies", message("reply"), reply=True)
    settler.add(delivery, Outcome("succeeded", (good, bad), record(message("id-0"), "SUCCESS", 1)))
    for _ in range(10):
        if settler.settlements:
            settler.settle(consumer)
    assert settler.settlements == []
    assert (session.depth("next"), session.depth("mail.dead")) == (1, 1)
