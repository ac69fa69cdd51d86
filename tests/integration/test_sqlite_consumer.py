from __future__ import annotations

import os
import random
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker.interface import Delivery
from taskq.broker.sqlite.consumer import SqliteConsumer
from taskq.broker.sqlite.properties import correlation_id
from taskq.broker.sqlite.session import SqliteSession
from taskq.errors import ConnectionLost, DatabaseError, UnsupportedFeature
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from tests.integration.sqlite_children import Child, consumer_of, publication, publish, settings_of
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


def names(deliveries: list[Delivery]) -> list[str | None]:
    return [correlation_id(delivery.properties) for delivery in deliveries]


def readable(consumer: SqliteConsumer, seconds: float = 5.0) -> bool:
    return bool(select.select([consumer.fileno()], [], [], seconds)[0])


def live(url: str) -> list[str]:
    return os.listdir(f"{url.removeprefix('sqlite:///')}.live")


def test_the_window_is_kept_and_fills_again(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", *"abcde")
    consumer.set_window(2)
    first = consumer.receive()
    assert names(first) == ["a", "b"]
    assert consumer.receive() == []
    assert not readable(consumer, 0.0)
    with consumer.transaction():
        consumer.ack(first[0])
    assert readable(consumer)
    assert names(consumer.receive()) == ["c"]
    consumer.set_window(0)
    assert consumer.receive() == []
    consumer.set_window(10)
    assert readable(consumer)
    assert names(consumer.receive()) == ["d", "e"]


def test_messages_given_back_precede_every_priority_and_wake_others(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", *"abc")
    held = consumer.receive()
    consumer.set_window(0)
    other = consumer_of(url, "mail")
    assert other.receive() == []
    with consumer.transaction():
        consumer.publish([publication("mail", "urgent", priority=9)])
        for delivery in held:
            consumer.publish([publication("mail", names([delivery])[0] or "", priority=0, first=True)])
            consumer.ack(delivery)
        consumer.publish([publication("mail", "later", delay=0.01, priority=3, first=True)])
    assert readable(other)
    again = other.receive()
    assert names(again) == ["a", "b", "c", "urgent"]
    assert not any(delivery.redelivered for delivery in again)
    assert names(Hold(other).receive(1)) == ["later"]
    other.close()


def test_what_was_delayed_has_no_precedence_once_it_is_due(url: str, consumer: SqliteConsumer) -> None:
    consumer.publish([publication("mail", "delayed", delay=0.01, priority=3, first=True), publication("mail", "x", priority=4)])
    consumer.set_window(1)
    (first,) = Hold(consumer).receive(1)
    eventually(lambda: consumer.tick() > 0.5, "the delayed one is let go")
    consumer.publish([publication("mail", "y", priority=4)])
    order = names([first])
    held = first
    for _ in range(2):
        consumer.ack(held)
        (held,) = Hold(consumer).receive(1)
        order += names([held])
    assert order == ["x", "y", "delayed"]


def test_a_queue_that_is_full_does_not_starve_another(url: str) -> None:
    publish(url, "busy", *map(str, range(100)))
    consumer = consumer_of(url, "busy", "quiet", window=5)
    held = consumer.receive()
    publish(url, "quiet", "x")
    seen: list[str | None] = []
    for _ in range(3):
        for delivery in held:
            consumer.ack(delivery)
        held = consumer.receive()
        seen += names(held)
    assert "x" in seen
    consumer.close()


def test_a_transaction_that_fails_can_be_repeated(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", *"abc")
    a, _, c = consumer.receive()
    results = SqliteResults(url, 60.0, consumer.database)

    def settle() -> None:
        assert consumer.publish([publication("other", "follow-up")]).confirmed
        results.store([Record(id="a", status="SUCCESS", meta=b"1")])
        consumer.ack(a)

    with pytest.raises(ZeroDivisionError), consumer.transaction():
        settle()
        raise ZeroDivisionError
    assert results.fetch(["a"])[0] is None
    assert consumer.receive() == []
    with consumer.transaction():
        settle()
    assert results.fetch(["a"])[0] is not None
    assert consumer.receive() == []
    consumer.ack(c)
    consumer.close()
    session = SqliteSession(settings_of(url), 5.0)
    assert (session.depth("mail"), session.depth("other")) == (1, 1)
    session.close()


def test_the_session_counts_and_purges(session: SqliteSession, url: str) -> None:
    assert session.depth("mail") is None
    session.publish(
        [publication("mail", name) for name in "abc"] + [publication("mail", "d", delay=60.0)], time.monotonic() + 5
    )
    assert (session.depth("mail"), session.depth("mail.dead"), session.depth("mail.dead.dead")) == (3, 0, None)
    assert session.purge("mail") == 3
    assert session.depth("mail") == 0


def test_a_publish_is_all_or_nothing(session: SqliteSession) -> None:
    broken = publication("mail", "b")
    broken.message.headers["x"] = object()
    with pytest.raises(UnsupportedFeature):
        session.publish([publication("mail", "a"), broken], time.monotonic() + 5)
    assert session.depth("mail") is None


def test_a_publish_gives_up_at_its_deadline(url: str, session: SqliteSession, consumer: SqliteConsumer) -> None:
    started = time.monotonic()
    with consumer.transaction():
        consumer.publish([publication("mail", "a")])
        with pytest.raises(DatabaseError, match="locked"):
            session.publish([publication("mail", "b")], started + 0.2)
    assert time.monotonic() - started < 3.0


def test_delayed_messages_are_let_go_when_due_whoever_waits(url: str, consumer: SqliteConsumer) -> None:
    hold = Hold(consumer)
    publish(url, "mail", "late", delay=0.4)
    publish(url, "mail", "soon", delay=0.1)
    started = time.monotonic()
    assert names(hold.receive(1)) == ["soon"]
    assert time.monotonic() - started > 0.05
    assert names(hold.receive(1)) == ["late"]
    assert time.monotonic() - started < 2.0


def test_a_delay_outlives_every_process(url: str) -> None:
    publish(url, "mail", "a", delay=0.05)
    assert names(Hold(consumer_of(url, "mail")).receive(1)) == ["a"]


def test_a_dead_consumer_is_noticed_at_once(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", *map(str, range(20)))
    consumer.set_window(0)
    times = []
    for _ in range(5):
        child = Child("hold", url, "mail", 20)
        assert child.line() == "20"
        consumer.tick()
        consumer.receive()
        consumer.set_window(20)
        child.process.kill()
        killed = time.monotonic()
        held: list[Delivery] = []
        while len(held) < 20:
            assert readable(consumer)
            held += consumer.receive()
        times.append(time.monotonic() - killed)
        assert all(delivery.redelivered for delivery in held)
        assert names(held) == [str(number) for number in range(20)]
        consumer.set_window(0)
        with consumer.transaction():
            for delivery in held:
                consumer.publish([publication("mail", names([delivery])[0] or "", first=True)])
                consumer.ack(delivery)
        child.kill()
    assert sorted(times)[2] < 0.1, times


def test_the_dead_are_noticed_by_whoever_comes_next(url: str, session: SqliteSession) -> None:
    publish(url, "mail", *"abc")
    child = Child("hold", url, "mail", 3)
    assert child.line() == "3"
    assert session.depth("mail") == 0
    child.kill()
    assert session.depth("mail") == 3
    assert live(url) == []
    consumer = consumer_of(url, "mail")
    assert names(consumer.receive()) == ["a", "b", "c"]
    consumer.close()


def test_a_stopped_consumer_is_not_dead(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", "a")
    child = Child("hold", url, "mail", 1)
    assert child.line() == "1"
    child.process.send_signal(signal.SIGSTOP)
    assert Hold(consumer).quiet(1.5)
    child.kill()
    assert names(Hold(consumer).receive(1)) == ["a"]


def test_children_of_a_consumer_do_not_keep_it_alive(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", "a")
    consumer.set_window(0)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            holder = consumer_of(url, "mail")
            held = holder.receive()
            if os.fork() == 0:
                # Lives until the test closes its end.
                os.read(reading, 1)
            os._exit(0 if len(held) == 1 else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    consumer.set_window(1)
    assert names(Hold(consumer).receive(1)) == ["a"]
    os.close(writing)
    os.close(reading)


def test_a_consumer_whose_pipe_was_removed_says_so(url: str) -> None:
    consumer = consumer_of(url, "mail")
    shutil.rmtree(f"{url.removeprefix('sqlite:///')}.live")
    with pytest.raises(ConnectionLost, match="was removed"):
        eventually(lambda: consumer.tick() < 0)
    consumer.close()
    again = consumer_of(url, "mail")
    again.close()


def test_closing_gives_everything_back(url: str, consumer: SqliteConsumer) -> None:
    publish(url, "mail", *"ab")
    other = consumer_of(url, "mail")
    other.receive()
    other.close()
    assert names(Hold(consumer).receive(2)) == ["a", "b"]
    assert len(live(url)) == 1


def test_consumers_come_and_go_while_others_reap(url: str) -> None:
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(15):
                consumer = consumer_of(url, "mail")
                consumer.tick()
                consumer.close()
        except BaseException as error:  # noqa: BLE001  # shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert live(url) == []


def test_an_idle_consumer_sleeps(url: str, consumer: SqliteConsumer) -> None:
    deadline, spent, turns = time.monotonic() + 3.0, time.process_time(), 0
    while (left := deadline - time.monotonic()) > 0:
        select.select([consumer.fileno()], [], [], min(left, consumer.tick()))
        consumer.receive()
        turns += 1
    assert turns < 15
    assert time.process_time() - spent < 0.1


def test_a_wake_up_takes_milliseconds(url: str, consumer: SqliteConsumer, session: SqliteSession) -> None:
    times: list[float] = []
    ready = threading.Semaphore(0)

    def receive() -> None:
        for _ in range(50):
            ready.release()
            held = Hold(consumer).receive(1)
            times.append(time.monotonic() - float(names(held)[0] or 0))
            consumer.ack(held[0])

    thread = threading.Thread(target=receive)
    thread.start()
    for _ in range(50):
        ready.acquire()
        session.publish([publication("mail", str(time.monotonic()))], time.monotonic() + 5)
    thread.join()
    assert sorted(times)[25] < 0.02, sorted(times)


def test_thousands_of_messages_survive_kills_of_everybody(url: str) -> None:
    count = 3000
    publish(url, "mail", *map(str, range(count // 2)))
    workers = [Child("work", url, "mail") for _ in range(3)]
    for worker in workers:
        worker.line()
    session = SqliteSession(settings_of(url), 5.0)
    results = SqliteResults(url, 60.0)
    kills = 0
    for start in range(count // 2, count, 100):
        session.publish([publication("mail", str(number)) for number in range(start, start + 100)], time.monotonic() + 10)
        victim = random.randrange(3)
        workers[victim].kill()
        workers[victim] = Child("work", url, "mail")
        kills += 1
    for worker in workers:
        assert worker.process.poll() is None
    missing = set(map(str, range(count)))

    def none_missing() -> bool:
        missing.difference_update([name for name in missing if results.fetch([name])[0]])
        return not missing

    eventually(none_missing, "every message has its result", 60.0)
    for worker in workers:
        worker.kill()
    assert session.depth("mail") == 0
    assert kills == 15
    session.close()
    results.close()


def test_several_producers_and_consumers_share_a_file(url: str) -> None:
    producers = [Child("fill", url, "mail", 150) for _ in range(3)]
    consumers = [consumer_of(url, "mail", window=20) for _ in range(2)]
    taken = 0
    while taken < 450:
        for consumer in consumers:
            held = Hold(consumer).turn(0.05)
            taken += len(held)
            with consumer.transaction():
                for delivery in held:
                    consumer.ack(delivery)
    for producer in producers:
        producer.result()
    for consumer in consumers:
        assert consumer.receive() == []
        consumer.close()
