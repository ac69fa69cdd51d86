"""Results that go back to their callers as messages, on a real RabbitMQ."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery

from taskq.broker import open_consumer, open_replies, open_session
from taskq.broker.amqp.properties import decode
from taskq.config import Settings
from taskq.errors import BrokerUnreachable, ConfigurationError, UnsupportedFeature
from taskq.message import Message, Publication
from taskq.results import open_store
from taskq.results.rpc import RpcResults, reply
from taskq.results.store import Record
from taskq.workers.outcome import failure, record
from tests.conftest import staged
from tests.integration.amqp_support import settings_for
from tests.proxy import Proxy
from tests.servers import RabbitMQ, free_port
from tests.support import Stage, Worker, consuming, eventually


@contextmanager
def store_for(settings: Settings) -> Iterator[RpcResults]:
    store = open_store("rpc://", 60.0, open_replies=functools.partial(open_replies, settings))
    assert isinstance(store, RpcResults)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def settings(rabbitmq: RabbitMQ) -> Settings:
    return settings_for(rabbitmq.url)


@pytest.fixture
def results(settings: Settings) -> Iterator[RpcResults]:
    with store_for(settings) as store:
        yield store


@pytest.fixture
def stage(rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(rabbitmq.url, queue, tmp_path, {"queue_type": "classic"}))


def through(node: RabbitMQ, proxy: Proxy) -> Settings:
    """Settings that reach the node by way of the proxy."""
    return settings_for(node.url.replace(f":{node.port}/", f":{proxy.port}/"))


def call(reply_to: str) -> Message:
    """A call that has arrived at a worker."""
    task_id = str(uuid.uuid4())
    return Message(headers={"id": task_id, "task": "add"}, body=b"[[], {}, {}]", correlation_id=task_id, reply_to=reply_to)


def success(message: Message, value: Any = 1) -> Record:
    end = record(message, "SUCCESS", value)
    assert end is not None
    return end


def send(settings: Settings, *records: Record) -> None:
    """Reply as a worker does, confirmed."""
    replies = [publication for record in records if (publication := reply(record))]
    consumer = open_consumer(settings, ["test.rpc"])
    consumer.connect(5.0)
    try:
        receipt = consumer.publish(replies)
        eventually(lambda: consumer.receive() == [] and receipt.confirmed, "the replies are confirmed")
    finally:
        consumer.close()


def publish(settings: Settings, *records: Record) -> None:
    """The same from an application."""
    session = open_session(settings, 5.0)
    session.publish([publication for record in records if (publication := reply(record))], time.monotonic() + 5.0)
    session.close()


def depth(settings: Settings, queue: str) -> int | None:
    session = open_session(settings, 5.0)
    try:
        return session.depth(queue)
    finally:
        session.close()


def test_results_come_back_to_who_waits_and_to_who_asks_later(settings: Settings, results: RpcResults) -> None:
    calls = [call(results.reply_to) for _ in range(50)]
    ends = [success(one, number) for number, one in enumerate(calls)]
    got: list[Record | None] = []
    threads = [threading.Thread(target=lambda end=end: got.append(results.wait(end.id, 20.0))) for end in ends[:20]]
    for thread in threads:
        thread.start()
    assert results.wait(ends[0].id, 0.01) is None
    send(settings, *ends)
    for thread in threads:
        thread.join()
    assert {one.id for one in got if one} == {end.id for end in ends[:20]}
    assert results.wait(ends[-1].id, 10.0) is not None
    assert [one and one.meta for one in results.fetch([end.id for end in ends])] == [end.meta for end in ends]
    results.forget([ends[3].id])
    assert results.fetch([ends[3].id]) == [None]


def test_whoever_waits_is_told_at_once(settings: Settings, results: RpcResults) -> None:
    end = success(call(results.reply_to))
    with consuming(settings, "test.rpc") as hold:
        told: list[float] = []
        thread = threading.Thread(target=lambda: told.append(time.monotonic()) if results.wait(end.id, 20.0) else None)
        thread.start()
        eventually(lambda: results._waiters, "it waits")
        sent = time.monotonic()
        publication = reply(end)
        assert publication is not None
        with hold.consumer.transaction():
            receipt = hold.consumer.publish([publication])
        thread.join()
        assert told[0] - sent < 2.0
        eventually(lambda: hold.consumer.receive() == [] and receipt.confirmed, "the reply is confirmed")


def test_a_reply_to_a_caller_that_is_gone_is_dropped_and_nothing_is_declared_for_it(settings: Settings) -> None:
    gone = f"test.gone.{uuid.uuid4().hex}"
    send(settings, success(call(gone)))
    publish(settings, success(call(gone)))
    assert depth(settings, gone) is None
    assert reply(Record("a", "SUCCESS", b"{}")) is None


def test_a_caller_whose_queue_is_full_keeps_no_worker_from_settling(settings: Settings) -> None:
    full = f"test.full.{uuid.uuid4().hex}"
    with kombu.Connection(settings.broker) as connection, connection.channel() as channel:
        channel.queue_declare(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, auto_delete=False)
        send(settings, *[success(call(full)) for _ in range(20)])
        assert channel.queue_delete(full) < 20


def test_replies_survive_broken_connections(rabbitmq: RabbitMQ, settings: Settings) -> None:
    with Proxy(rabbitmq.port) as proxy, store_for(through(rabbitmq, proxy)) as mine:
        ends = [success(call(mine.reply_to)) for _ in range(40)]
        for start in range(0, len(ends), 10):
            proxy.cut()
            send(settings, *ends[start : start + 10])
        for end in ends:
            assert mine.wait(end.id, 10.0) is not None


def test_replies_survive_a_broker_that_is_killed(killable_rabbitmq: RabbitMQ) -> None:
    node = killable_rabbitmq
    with Proxy(node.port) as proxy, store_for(through(node, proxy)) as mine:
        end, later = success(call(mine.reply_to)), success(call(mine.reply_to))
        proxy.stall()
        publish(settings_for(node.url), end)
        node.restart()
        assert mine.fetch([end.id]) == [None]
        proxy.flow()
        publish(settings_for(node.url), later)
        assert mine.wait(end.id, 10.0) is not None
        assert mine.wait(later.id, 10.0) is not None


def test_a_broker_that_is_away_is_told_of_and_found_later(settings: Settings) -> None:
    with store_for(settings_for(f"amqp://u:secret@127.0.0.1:{free_port()}//", publish_timeout=1.0)) as mine:
        for _ in range(2):
            with pytest.raises(BrokerUnreachable) as refused:
                _ = mine.reply_to
            assert "secret" not in str(refused.value)
    with Proxy(free_port()) as silent:
        silent.stall()
        with store_for(settings_for(f"amqp://127.0.0.1:{silent.port}//", publish_timeout=0.5)) as mine:
            began = time.monotonic()
            with pytest.raises(BrokerUnreachable):
                _ = mine.reply_to
            assert time.monotonic() - began < 2.0


def test_who_sent_no_call_is_told_where_results_are(results: RpcResults) -> None:
    for ask in (lambda: results.fetch(["a"]), lambda: results.wait("a", 0.0)):
        with pytest.raises(UnsupportedFeature, match="the process that sent the call"):
            ask()
    with pytest.raises(UnsupportedFeature):
        results.store([Record("a", "SUCCESS", b"{}")])
    with pytest.raises(ConfigurationError, match="keeps results"):
        open_store("rpc://", 60.0)
    assert results.chords is None


def test_closing_deletes_the_queue_and_wakes_who_waits(settings: Settings, results: RpcResults) -> None:
    name, refused = results.reply_to, threading.Event()

    def wait() -> None:
        try:
            results.wait("a", 20.0)
        except UnsupportedFeature:
            refused.set()

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: results._waiters, "it waits")
    results.close()
    thread.join()
    assert refused.is_set()
    assert depth(settings, name) is None
    assert results.reply_to != name


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_queue_of_its_own(settings: Settings, results: RpcResults) -> None:
    end = success(call(results.reply_to))
    pid = os.fork()
    if pid == 0:
        try:
            mine = success(call(results.reply_to))
            assert mine.reply_to != end.reply_to
            send(settings, mine)
            assert results.wait(mine.id, 10.0) is not None
            results.close()
            os._exit(0)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    send(settings, end)
    assert results.wait(end.id, 10.0) is not None


def test_an_sqlite_broker_has_no_replies(tmp_path: Path) -> None:
    session = open_session(settings_for(f"sqlite:///{tmp_path}/taskq.db"), 5.0)
    with pytest.raises(UnsupportedFeature, match="amqp"):
        session.publish([Publication("a", Message(headers={}, body=b"{}"), reply=True)], time.monotonic() + 5.0)
    session.close()
    with pytest.raises(ConfigurationError, match="amqp"):
        settings_for(f"sqlite:///{tmp_path}/taskq.db", backend="rpc://")


def test_a_celery_client_reads_our_replies(stage: Stage) -> None:
    app = Celery("shop", broker=stage.broker, backend="rpc://", set_as_current=False)
    app.conf.task_default_queue = stage.queue
    good, bad = app.send_task("add", [1, 2]), app.send_task("add", ["x"])
    with consuming(stage.effective(), stage.queue) as hold:
        for delivery in hold.receive(2):
            message = decode(delivery.properties, delivery.body)
            end = success(message, {"sum": 3})
            if message.headers["id"] == bad.id:
                failed = record(message, "FAILURE", failure("ValueError", ["x"], "builtins"), "Traceback …")
                assert failed is not None
                end = failed
            publication = reply(end)
            assert publication is not None
            hold.consumer.publish([publication])
            hold.ack([delivery])
        assert good.get(timeout=10) == {"sum": 3}
        with pytest.raises(ValueError, match="x"):
            bad.get(timeout=10)
        assert bad.traceback == "Traceback …"
    app.backend.result_consumer.stop()
    app.close()


def test_a_celery_worker_replies_to_us(stage: Stage, results: RpcResults) -> None:
    good, bad = call(results.reply_to), call(results.reply_to)
    good = good.with_headers(task="tests.celery.echo")
    bad = bad.with_headers(task="tests.celery.fail")
    stage.publish(good, bad)
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.celery_side", "worker", "-P", "solo", "-l", "INFO"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = stage.environment(C_FORCE_ROOT="1", CELERY_SIDE_BACKEND="rpc://")
    with Worker(command, environment, stage.folder / "celery.log"):
        for message, status in ((good, "SUCCESS"), (bad, "FAILURE")):
            end = results.wait(message.headers["id"], 20.0)
            assert end is not None
            assert end.status == status
