"""``delay`` from many threads, on both sides of a fork, and over a broker's restart: each call is one message."""

from __future__ import annotations

import os
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from taskq import TaskQ
from tests.support import Stage

THREADS, EACH = 16, 25


def arrived(stage: Stage, count: int) -> list[str]:
    """The ids of the messages in the queue, of which there are so many."""
    assert stage.depth() == count
    return sorted(str(message.headers["id"]) for message in stage.drain(count))


def fork(client: TaskQ, count: int) -> int:
    """A forked child that sends so many, each from a thread of its own; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: client.send_task("add", [number, 1]), range(count)))
        client.close()
        code = 0
    except BaseException:  # noqa: BLE001  # nothing may run on as if the child were the test
        traceback.print_exc()
    finally:
        os._exit(code)


def test_many_threads(stage: Stage) -> None:
    # SQLite lets one at a time write, in no order: on a busy machine one of many may wait for long.
    client = stage.client(publish_timeout=60.0)
    barrier = threading.Barrier(THREADS)

    def send(thread: int) -> list[str]:
        barrier.wait()
        return [client.send_task("add", [thread, number]).id for number in range(EACH)]

    with ThreadPoolExecutor(THREADS) as pool:
        sent = sorted(task_id for ids in pool.map(send, range(THREADS)) for task_id in ids)
    assert len(set(sent)) == THREADS * EACH
    assert arrived(stage, THREADS * EACH) == sent


def test_both_sides_of_a_fork(stage: Stage) -> None:
    client = stage.client()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: client.send_task("add", [number, 1]), range(8)))
    children = [fork(client, 10) for _ in range(2)]
    for number in range(10):
        client.send_task("add", [number, 1])
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    # The child's goodbye must not have been said on the parent's connection.
    client.send_task("add", [0, 0])
    assert len(set(arrived(stage, 8 + 2 * 10 + 10 + 1))) == 39


def test_a_fork_while_other_threads_send(stage: Stage) -> None:
    # Four threads leave SQLite's only writer little time for anybody else.
    client = stage.client(publish_timeout=60.0)
    client.send_task("add", [0, 0])
    enough = threading.Event()
    sent = []

    def send() -> None:
        while not enough.is_set():
            sent.append(client.send_task("add", [1, 1]).id)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert os.waitpid(fork(client, 3), 0)[1] == 0
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    ids = arrived(stage, 1 + len(sent) + 5 * 3)
    assert set(sent) <= set(ids)
    assert len(set(ids)) == len(ids)


def test_a_fork_while_other_threads_connect(stage: Stage) -> None:
    """A child that inherits a connection of SQLite's in the middle of its opening waits for the parent's lock for ever."""
    for _ in range(10):
        client = stage.client(publish_timeout=60.0)
        client.send_task("add", [0, 0])
        with ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(client.send_task, "add", [1, number]) for number in range(16)]
            child = fork(client, 3)
            started = time.monotonic()
            assert os.waitpid(child, 0)[1] == 0
            assert time.monotonic() - started < 30
            assert len({result.result().id for result in sent}) == 16
        client.close()
    assert len(set(arrived(stage, 10 * (1 + 16 + 3)))) == 200
