from __future__ import annotations

import os
import statistics
import threading
import time

import pytest

from taskq.results.store import Record, ResultStore
from tests.conformance.results.support import Backend, fetched, fresh, process, record


def in_the_background(store: ResultStore, task_id: str, timeout: float = 30.0) -> tuple[threading.Thread, list[Record | None]]:
    """A thread that waits, and what it has got in the end."""
    got: list[Record | None] = []
    thread = threading.Thread(target=lambda: got.append(store.wait(task_id, timeout)))
    thread.start()
    return thread, got


def test_waiting_ends_with_the_time(store: ResultStore) -> None:
    started = time.monotonic()
    assert store.wait(fresh(), 0.2) is None
    assert 0.19 < time.monotonic() - started < 1.5
    assert store.wait(fresh(), 0.0) is None


def test_what_has_ended_is_not_waited_for(store: ResultStore) -> None:
    end = record(fresh(), "FAILURE")
    store.store([end])
    assert store.wait(end.id, None) == end
    assert store.wait(end.id, 0.0) == end


def test_a_beginning_ends_no_wait(store: ResultStore) -> None:
    name = fresh()
    store.store([record(name, "STARTED")])
    assert store.wait(name, 0.0) is None
    assert store.wait(name, 0.05) is None
    store.store([record(name)])
    assert store.wait(name, 0.0) == record(name)


def test_the_store_of_another_process_wakes_at_once(backend: Backend, store: ResultStore) -> None:
    """Ping-pong between two processes: each waits for what the other stores. Polling would show in each round."""
    name, rounds = fresh(), []
    with process(backend, "answer", name, "30") as other:
        for number in range(30):
            started = time.monotonic()
            store.store([record(f"{name}-ping-{number}")])
            assert store.wait(f"{name}-pong-{number}", 30.0) is not None
            rounds.append(time.monotonic() - started)
        assert other.wait(10) == 0
    # The first one waits for the process to start.
    assert statistics.median(rounds[1:]) < 0.1


def test_no_bell_is_lost(backend: Backend, store: ResultStore) -> None:
    """Threads begin to wait while others store: whoever looks too early has to be told. A lost bell would cost a second."""
    other = backend.open()
    names = [fresh() for _ in range(150)]
    slow: list[float] = []

    def wait(mine: list[str]) -> None:
        for name in mine:
            started = time.monotonic()
            assert store.wait(name, 20.0) is not None
            slow.append(time.monotonic() - started)

    # Two wait for each.
    threads = [threading.Thread(target=wait, args=(names[number % 5 :: 5],)) for number in range(10)]
    for thread in threads:
        thread.start()
    for name in names:
        other.store([record(name)])
    stored = time.monotonic()
    for thread in threads:
        thread.join()
    assert len(slow) == 2 * len(names)
    assert time.monotonic() - stored < 0.9


def test_the_late_end_of_an_attempt_that_was_given_up_wakes_nobody_for_good(backend: Backend, store: ResultStore) -> None:
    name, other = fresh(), backend.open()
    store.store([record(name, "STARTED", 2)])
    thread, got = in_the_background(store, name)
    for _ in range(20):
        other.store([record(name, "FAILURE", 1)])
    assert fetched(store, name) == record(name, "STARTED", 2)
    stored = time.monotonic()
    other.store([record(name, "SUCCESS", 2)])
    thread.join()
    assert got == [record(name, "SUCCESS", 2)]
    assert time.monotonic() - stored < 0.9


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_on_its_own_and_disturbs_nobody(store: ResultStore) -> None:
    for_parent, for_child = record(fresh()), record(fresh())
    assert store.wait(fresh(), 0.01) is None
    thread, got = in_the_background(store, for_parent.id)
    pid = os.fork()
    if pid == 0:
        try:
            if store.wait(for_child.id, 20.0) == for_child and fetched(store, for_child.id) == for_child:
                store.store([for_parent])
                os._exit(0)
            os._exit(3)
        finally:
            os._exit(4)
    store.store([for_child])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    thread.join()
    assert got == [for_parent]
    again = record(fresh())
    store.store([again])
    assert store.wait(again.id, 5.0) == again


def test_a_waiter_that_was_killed_harms_nobody(backend: Backend, store: ResultStore) -> None:
    end = record(fresh())
    with process(backend, "wait", end.id) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"waiting\n"
    thread, got = in_the_background(store, end.id)
    store.store([end])
    thread.join()
    assert got == [end]
    store.expire()


def test_a_fork_while_other_threads_take_what_they_wait_with(store: ResultStore) -> None:
    """A lock that another thread holds at the fork is one that nobody in the child would release."""
    enough = threading.Event()

    def wait() -> None:
        while not enough.is_set():
            store.wait(fresh(), 0.0001)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                try:
                    os._exit(0 if store.wait(fresh(), 0.0001) is None else 3)
                finally:
                    os._exit(4)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        enough.set()
        for thread in threads:
            thread.join()
