"""Rows of the SQLite file that hold what nobody should have written, and many of them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from taskq.broker.interface import Delivery
from taskq.broker.sqlite.properties import correlation_id
from taskq.broker.sqlite.session import SqliteSession
from taskq.errors import BrokerError, ConfigurationError
from taskq.message import Message, Publication
from taskq.results.ledger import Change
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from taskq.sqlite import Database, path_of
from tests.integration.sqlite_children import consumer_of, publication, publish, settings_of
from tests.support import Hold

ODD_ID = "import-" + os.fsdecode(b"caf\xe9.csv")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


def ids(deliveries: list[Delivery]) -> list[str]:
    return sorted(correlation_id(delivery.properties) or "" for delivery in deliveries)


def test_a_row_that_nobody_can_read_is_delivered_as_bytes(url: str) -> None:
    publish(url, "mail", "a", "b", "c", "d")
    with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None)) as other:
        update = "update messages set properties = cast(x'ff00e9' as text), body = cast(x'e9' as text) where id = ?"
        other.execute(update, (2,))
        other.execute("update messages set body = 12, properties = 'null' where id = 3")
        other.execute("insert into controls (key, entry) values ('junk', cast(x'e9' as text)), ('deep', '[[[[')")
    session, consumer = SqliteSession(settings_of(url), 5.0), consumer_of(url, "mail")
    deliveries = Hold(consumer).receive(4)
    assert [type(delivery.body) for delivery in deliveries] == [bytes] * 4
    assert (deliveries[1].properties, deliveries[1].body) == (b"\xff\x00\xe9", b"\xe9")
    assert ids(deliveries) == ["", "", "a", "d"]
    Hold(consumer).ack(deliveries)
    assert session.stats("mail") is not None
    session.close()
    consumer.close()


@pytest.mark.parametrize("due", ["'abc'", "x'e9'", "cast(x'e9' as text)", "''"])
def test_what_is_no_moment_is_not_waited_for(url: str, due: str) -> None:
    publish(url, "mail", "odd", "late", delay=0.1)
    with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None)) as other:
        other.execute(f"update messages set due = {due}, queue = cast(x'e9' as text) where id = 1")
        other.execute(
            "insert into messages (queue, priority, due, properties, body) select 'mail', 0, due, '', '' from messages"
        )
    consumer = consumer_of(url, "mail")
    assert ids(Hold(consumer).receive(3)) == ["", "", "late"]
    consumer.close()


def test_a_text_that_is_no_utf8_is_its_own_trouble(url: str) -> None:
    results = SqliteResults(url, 60.0)
    ledger, names = results.ledger, ["odd", "good"]
    assert ledger is not None
    results.store([Record(name, "SUCCESS", b"{}", 1) for name in names])
    assert ledger.swap([Change(name, None, b"{}") for name in names])
    with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None)) as other:
        other.execute("update results set status = cast(x'e9' as text) where id = 'odd'")
        other.execute("update ledger set entry = cast(x'e9' as text) where key = 'odd'")
        other.execute("insert into waiters values ('odd', cast(x'e9' as text))")
    odd, good = results.fetch(names)
    assert odd is not None
    assert good == Record("good", "SUCCESS", b"{}", 1)
    assert ledger.read(names) == {"odd": b"\xe9", "good": b"{}"}
    assert ledger.swap([Change("odd", b"\xe9", b"{}")])
    ends = [Record(name, "SUCCESS", b"2", 2) for name in names]
    results.store(ends)
    assert results.fetch(names) == ends
    results.close()


@pytest.mark.parametrize("odd", [ODD_ID, "a\0b", "x" * 10_000, "\udce9" * 3])
def test_an_id_that_is_no_text_goes_its_way(url: str, odd: str) -> None:
    session, consumer = SqliteSession(settings_of(url), 5.0), consumer_of(url, "mail")
    results = SqliteResults(url, 60.0, consumer.database)
    session.publish([publication("mail", "before"), publication("mail", odd)], time.monotonic() + 5.0)
    first, second = Hold(consumer).receive(2)
    assert (correlation_id(first.properties), correlation_id(second.properties)) == ("before", odd)
    assert session.holds(odd)
    assert [found.state for found in session.find(odd)] == ["held"]
    with consumer.transaction():
        results.store([Record(name, "SUCCESS", b"{}", 2**70) for name in ("before", odd)])
        consumer.publish([publication("mail", f"{odd} again", delay=60.0)])
        consumer.ack(first)
        consumer.ack(second)
    assert [record and record.id for record in results.fetch(["before", odd])] == ["before", odd]
    end = results.wait(odd, 0.0)
    assert end is not None
    results.forget([odd])
    assert results.fetch([odd]) == [None]
    assert not session.holds(odd)
    session.close()
    consumer.close()


def test_what_cannot_be_stored_leaves_the_transaction_as_it_was(url: str) -> None:
    consumer = consumer_of(url, "mail")
    assert consumer.database is not None
    consumer.database.most_bytes = 100_000
    results = SqliteResults(url, 60.0, consumer.database)
    infinite = Message(headers={}, body=b"[]", correlation_id="infinite", priority=float("inf"))  # type: ignore[arg-type]
    deep: list[object] = []
    for _ in range(20_000):
        deep = [deep]
    too_deep = Message(headers={"x": deep}, body=b"[]")
    with consumer.transaction():
        results.store([Record("a", "SUCCESS", b"1")])
        for bad in (Publication("mail", infinite), Publication("mail", too_deep), publication("b\udce9", "x")):
            with pytest.raises((BrokerError, ConfigurationError)) as told:
                consumer.publish([publication("other", "before"), bad])
            assert not getattr(told.value, "passing", False)
        with pytest.raises(BrokerError):
            results.store([Record("b", "SUCCESS", b"1"), Record("c", "SUCCESS", b"x" * 200_000)])
        consumer.publish([publication("mail", "after")])
    del deep, too_deep
    assert [record and record.id for record in results.fetch(["a", "b", "c"])] == ["a", None, None]
    session = SqliteSession(settings_of(url), 5.0)
    assert (session.depth("mail"), session.depth("other")) == (1, None)
    session.close()
    consumer.close()


def test_a_million_expired_rows_hold_up_nobody(url: str) -> None:
    results = SqliteResults(url, 60.0)
    database = Database(path_of(url))
    with database.transaction():
        fill = """
            with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 100000)
            insert into {} select 'id ' || n, {}, 1.0 from numbers
        """
        database.execute("insert into results (id, status, meta, expires) values ('kept', 'SUCCESS', '{}', 1e12)")
        database.execute(fill.format("results (id, status, meta, expires)", "'SUCCESS', zeroblob(500)"))
        database.execute(fill.format("documents", "zeroblob(10)"))
    longest, more = 0.0, True
    while more:
        began = time.monotonic()
        more = results.expire()
        longest = max(longest, time.monotonic() - began)
    assert longest < 0.5
    assert database.execute("select (select count(*) from results), (select count(*) from documents)") == [(1, 0)]
    database.close()
    results.close()
