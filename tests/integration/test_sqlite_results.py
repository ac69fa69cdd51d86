from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from taskq.sqlite import path_of
from tests.integration.sqlite_children import Child
from tests.support import eventually


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/results.db"


@pytest.fixture
def results(url: str) -> Iterator[SqliteResults]:
    results = SqliteResults(url, 60.0)
    yield results
    results.close()


def success(task_id: str, meta: bytes = b"{}") -> Record:
    return Record(id=task_id, status="SUCCESS", meta=meta)


def waiters(results: SqliteResults) -> int:
    ((count,),) = results._database.execute("select count(*) from waiters")
    return int(count)


def test_a_record_comes_back_and_a_later_one_replaces_it(results: SqliteResults) -> None:
    assert results.fetch("a") is None
    results.store([success("a", b"1"), success("b", b"\xff\0")])
    results.store([Record(id="a", status="FAILURE", meta=b"2")])
    assert results.fetch("a") == Record(id="a", status="FAILURE", meta=b"2")
    assert results.fetch("b") == success("b", b"\xff\0")
    assert results._database.execute("select count(*) from results") == [(2,)]


def test_records_expire(url: str, results: SqliteResults) -> None:
    past = SqliteResults(url, -1.0)
    past.store([success(str(number)) for number in range(2500)])
    results.store([success("kept")])
    assert results.fetch("7") is None
    assert results.expire() == 2500
    assert results.expire() == 0
    assert results.fetch("kept") is not None
    past.close()


def test_waiting_ends_with_the_record_or_the_time(results: SqliteResults) -> None:
    started = time.monotonic()
    assert results.wait("a", 0.1) is None
    assert 0.09 < time.monotonic() - started < 0.5
    results.store([success("a")])
    assert results.wait("a", None) == success("a")
    assert results.wait("b", 0.0) is None
    assert waiters(results) == 0


def test_many_threads_are_woken_at_once(results: SqliteResults) -> None:
    times: dict[int, float] = {}

    def wait(number: int) -> None:
        assert results.wait(f"{number % 20}", 30.0) is not None
        times[number] = time.monotonic()

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    eventually(lambda: waiters(results) == 40, "all threads wait")
    stored = time.monotonic()
    results.store([success(f"{number}") for number in range(20)])
    for thread in threads:
        thread.join()
    assert len(times) == 40
    assert max(times.values()) - stored < 0.5
    assert waiters(results) == 0


def test_a_waiter_in_another_process_is_woken(url: str, results: SqliteResults) -> None:
    child = Child("wait", url, "a", 30)
    assert child.line() == "waiting"
    eventually(lambda: waiters(results) == 1, "the child waits")
    stored = time.monotonic()
    results.store([success("a")])
    assert child.line() == "SUCCESS"
    assert time.monotonic() - stored < 0.5
    child.result()


def test_dead_waiters_are_forgotten(url: str, results: SqliteResults) -> None:
    child = Child("wait", url, "a", 30)
    eventually(lambda: waiters(results) == 1, "the child waits")
    child.kill()
    results.expire()
    assert waiters(results) == 0
    assert os.listdir(f"{path_of(url)}.live") == []
    results.store([success("a")])


def test_a_forked_child_waits_on_its_own(results: SqliteResults) -> None:
    assert results.wait("a", 0.01) is None
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if results.wait("a", 30.0) else 3)
        finally:
            os._exit(4)
    eventually(lambda: waiters(results) == 1, "the child waits")
    results.store([success("a")])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert results.wait("b", 0.01) is None
