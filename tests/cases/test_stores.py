"""Records that a result backend will never take, and what it holds that nobody should have written: one task's trouble."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import redis as driver

from taskq.errors import BackendError, BrokerError, RecordRefused
from taskq.message import Message
from taskq.results.postgres import PostgresResults
from taskq.results.postgres.listener import CHANNEL
from taskq.results.redis import RedisResults
from taskq.results.redis.store import PREFIX
from taskq.results.rpc import RpcResults
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Barrier, Part, Record, ResultStore
from taskq.sqlite import Database
from tests.conformance.results.support import chords_of, fetched, fresh, record
from tests.postgres_server import Postgres
from tests.redis_server import Redis, running_redis
from tests.support import Stage, eventually

#: What a Redis server takes that is set to the least that it can be set to.
LEAST = 1024 * 1024
ODD = ["caf\udce9.csv", "a\0b", "x" * 10_000, "\n", "🦎"]


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultStore]:
    """Each backend."""
    store: ResultStore
    match request.param:
        case "sqlite":
            store = SqliteResults(f"sqlite:///{tmp_path}/results.db", 60.0)
        case "redis":
            store = RedisResults(request.getfixturevalue("redis").url, 60.0)
        case _:
            store = PostgresResults(request.getfixturevalue("postgres").url, 60.0)
    yield store
    store.close()


@pytest.fixture
def small_redis() -> Iterator[Redis]:
    """A server that takes a megabyte in one piece at most."""
    with running_redis() as server:
        with contextlib.closing(driver.Redis(port=server.port)) as client:
            client.config_set("proto-max-bulk-len", LEAST)
        yield server


def client_of(server: Redis) -> contextlib.closing[driver.Redis]:
    return contextlib.closing(driver.Redis(port=server.port))


def of_size(size: int) -> Record:
    return Record(fresh(), "SUCCESS", msgspec.json.encode({"status": "SUCCESS", "result": "x" * size}), 1)


def numbers(message: dict[str, Any]) -> Record:
    """A record whose task's message said so."""
    name = fresh()
    return Record(name, "SUCCESS", msgspec.json.encode({"task_id": name, "status": "SUCCESS", "result": 1}), **message)


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**70, -(2**70)])
def test_numbers_of_any_size(store: ResultStore, number: int) -> None:
    neighbour, odd = record(fresh()), numbers({"attempt": number, "round": number})
    store.store([neighbour, odd])
    assert fetched(store, neighbour.id) == neighbour
    found = fetched(store, odd.id)
    assert found is not None
    assert found.meta == odd.meta
    assert store.begin([numbers({"attempt": number, "round": number, "run": fresh()})]) == ["granted"]


@pytest.mark.parametrize("odd", ODD)
def test_ids_of_any_sort(store: ResultStore, odd: str) -> None:
    name, neighbour = fresh() + odd, record(fresh())
    end = msgspec.structs.replace(neighbour, id=name)
    got: list[Record | None] = []
    waiting = threading.Thread(target=lambda: got.append(store.wait(name, 20.0)))
    waiting.start()
    store.store([neighbour, end])
    waiting.join()
    assert [found and found.id for found in got] == [name]
    assert [found and found.id for found in store.fetch([name, neighbour.id])] == [name, neighbour.id]
    store.keep(name, b"document", 60.0)
    assert store.document(name) == b"document"
    store.forget([name])
    assert store.fetch([name]) == [None]


def refuses(store: ResultStore, bad: Record) -> None:
    """It refuses this one and takes its neighbours, all the same whether it is asked for the third time."""
    neighbours = [record(fresh()), record(fresh())]
    for batch in ([neighbours[0], bad, neighbours[1]], [bad], [bad]):
        with pytest.raises(RecordRefused) as told:
            store.store(batch)
        assert not told.value.passing
    for one in neighbours:
        store.store([one])
    assert store.fetch([one.id for one in neighbours]) == neighbours
    assert fetched(store, bad.id) is None
    begun = msgspec.structs.replace(bad, status="STARTED", lasting=True, run=fresh())
    with pytest.raises(RecordRefused):
        store.begin([begun])
    with pytest.raises(RecordRefused):
        chords_of(store).count([Part(fresh(), 0, bad.id, "SUCCESS", bad.meta)], "one")
    assert store.begin([msgspec.structs.replace(begun, meta=b"{}")]) == ["granted"]


def test_one_record_is_too_large_for_sqlite(tmp_path: Path) -> None:
    database = Database(tmp_path / "results.db")
    database.most_bytes = 1_000_000
    store = SqliteResults(f"sqlite:///{database.path}", 60.0, database)
    refuses(store, of_size(1_000_000))
    with database.transaction():
        kept = record(fresh())
        store.store([kept])
        with pytest.raises(RecordRefused):
            store.store([of_size(1_000_000)])
    assert fetched(store, kept.id) == kept, "the transaction goes on"
    database.close()


def test_one_record_is_too_large_for_redis(small_redis: Redis) -> None:
    with contextlib.closing(RedisResults(small_redis.url, 60.0)) as store:
        store.store([of_size(LEAST - 1000)])
        refuses(store, of_size(LEAST + 1))
        with pytest.raises(RecordRefused):
            store.keep(fresh(), b"x" * (LEAST + 1), 60.0)
        small_redis.kill()
        with pytest.raises(BackendError) as told:
            store.store([of_size(LEAST + 1)])
        assert told.value.passing, "an outage says nothing about the record"


def test_no_memory_passes(small_redis: Redis) -> None:
    with (
        contextlib.closing(RedisResults(small_redis.url, 60.0)) as store,
        client_of(small_redis) as client,
    ):
        end = record(fresh())
        client.config_set("maxmemory", 1)
        with pytest.raises(BackendError, match="maxmemory") as told:
            store.store([end])
        assert told.value.passing
        client.config_set("maxmemory", 0)
        store.store([end])
        assert fetched(store, end.id) == end


def test_a_key_of_redis_that_somebody_else_uses(redis: Redis) -> None:
    bad, neighbour = record(fresh()), record(fresh())
    with (
        contextlib.closing(RedisResults(redis.url, 60.0)) as store,
        contextlib.closing(driver.Redis(port=redis.port)) as client,
    ):
        client.rpush(PREFIX + bad.id, "mine")
        for _ in range(2):
            with pytest.raises(RecordRefused):
                store.store([neighbour, bad])
        store.store([neighbour])
        assert fetched(store, neighbour.id) == neighbour


HOSTILE = [
    b"\xe9",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"status":' * 50_000,
    b"null",
    b"[]",
    b'{"status": 5}',
    b'{"status": "SUCCESS", "attempt": {}, "round": [], "run": {}}',
    b'{"status": "\\ud800", "run": "\\ud800"}',
    b"\x80\x04\x95",
    b"",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_stands_in_redis_may_be_anything(redis: Redis, hostile: bytes) -> None:
    name = fresh()
    with (
        contextlib.closing(RedisResults(redis.url, 60.0)) as store,
        contextlib.closing(driver.Redis(port=redis.port)) as client,
    ):
        client.set(PREFIX + name, hostile)
        neighbour = record(fresh())
        store.store([neighbour])
        found, other = store.fetch([name, neighbour.id])
        assert found is not None
        assert other == neighbour
        store.wait(name, 0.01)
        leave = store.begin([msgspec.structs.replace(record(name, "STARTED"), run="a")])
        assert leave in (["granted"], ["over"])
        end = record(name, "SUCCESS", 10)
        store.store([end])
        assert fetched(store, name) == end
        # And what a Celery worker published of somebody whom we wait for.
        client.publish(PREFIX + name, hostile)


def test_a_member_of_a_chord_in_redis_that_nobody_can_read(redis: Redis) -> None:
    chord = fresh()
    with (
        contextlib.closing(RedisResults(redis.url, 60.0)) as store,
        contextlib.closing(driver.Redis(port=redis.port)) as client,
    ):
        chords_of(store).open([Barrier(chord, 2)])
        client.zadd(f"celery-taskset-meta-{chord}.j", {b"\xe9[": 0.0})
        [whole] = chords_of(store).count([Part(chord, 1, "b", "SUCCESS", b"1")], "one")
        assert (whole.state, [member.status for member in whole.members]) == ("complete", ["FAILURE", "SUCCESS"])


JUNK = ["", "{}", "[1]", "[[", '"', "x" * 7000, '["' + "a" * 50 + '", null]']


def test_a_notification_that_is_none_ends_no_waiting(postgres: Postgres) -> None:
    with contextlib.closing(PostgresResults(postgres.url, 60.0)) as store:

        def wait() -> None:
            end, got = record(fresh()), list[Record | None]()
            waiting = threading.Thread(target=lambda: got.append(store.wait(end.id, 20.0)))
            waiting.start()
            store.store([end])
            waiting.join()
            assert got == [end]

        wait()
        # The connection that it was told through goes on listening for a while.
        with psycopg.connect(postgres.url, autocommit=True) as other:
            for junk in JUNK:
                other.execute("select pg_notify(%s, %s)", (CHANNEL, junk))
                wait()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_reply_may_say_anything(hostile: bytes) -> None:
    takes: list[Any] = []

    class Queue:
        name = "replies"

        def close(self) -> None:
            """Nothing is open."""

    def open_replies(take: Any) -> Queue:
        takes.append(take)
        return Queue()

    store = RpcResults(open_replies, 60.0)
    assert store.reply_to == "replies"
    takes[0]("odd", hostile)
    takes[0]("caf\udce9", record("x").meta)
    assert store.wait("odd", 0.01) in (None, Record("odd", "SUCCESS", hostile))
    assert store.wait("caf\udce9", 0.01) is not None
    with pytest.raises(Exception, match="keeps no records"):
        store.begin([record("x", "STARTED")])


def test_values_that_no_driver_takes_are_refused(store: ResultStore) -> None:
    """Whatever it is that we have not thought of."""
    odd = Record(fresh(), "\udce9", b"{}")  # type: ignore[arg-type]
    with pytest.raises(BrokerError) as told:
        store.store([odd])
    assert not told.value.passing
    neighbour = record(fresh())
    store.store([neighbour])
    assert fetched(store, neighbour.id) == neighbour


@pytest.mark.parametrize("odd", ["record", "size", "members"])
def test_what_somebody_else_has_put_under_a_name_costs_its_own_task(redis: Redis, sqlite_stage: Stage, odd: str) -> None:
    sqlite_stage.settings["backend"] = redis.url
    client, chord = sqlite_stage.client(), fresh()
    body: dict[str, Any] = {"task": "add", "args": [], "kwargs": {}, "options": {"task_id": fresh()}}
    embed = {"chord": {**body, "subtask_type": None, "immutable": False}}
    bad = Message(
        headers={"lang": "py", "task": "add", "id": fresh(), "retries": 0, "group": chord, "group_index": 0},
        body=msgspec.json.encode([[1, 1], {}, {} if odd == "record" else embed]),
    )
    with client_of(redis) as other:
        match odd:
            case "record":
                other.lpush(f"celery-task-meta-{bad.id}", "1")
            case "size":
                other.set(f"celery-taskset-meta-{chord}.s", "abc")
            case "members":
                other.set(f"celery-taskset-meta-{chord}.j", "abc")
    with sqlite_stage.worker() as worker:
        worker.started()
        sqlite_stage.publish(bad)
        assert client.send_task("add", [2, 2]).get(timeout=15) == 4
        dead = f"{sqlite_stage.queue}.dead"
        eventually(lambda: sqlite_stage.depth(dead) == 1, "it is a dead letter")
        assert worker.stop() == 0
    [letter] = sqlite_stage.drain(1, dead)
    assert letter.body == bad.body
