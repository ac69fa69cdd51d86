from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from taskq.errors import ResultTimeout
from taskq.results.handle import AsyncResult, Source
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record, Status
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


def test_a_start_wakes_nobody_and_the_end_after_it_everybody(url: str, results: SqliteResults) -> None:
    child = Child("wait", url, "a", 30)
    assert child.line() == "waiting"
    eventually(lambda: waiters(results) == 1, "the child waits")
    results.store([Record("a", "STARTED", b"1"), success("b")])
    assert waiters(results) == 1
    assert results.wait("a", 0.0) is None
    assert results.wait("a", 0.05) is None
    stored = time.monotonic()
    results.store([success("a")])
    assert child.line() == "SUCCESS"
    assert time.monotonic() - stored < 0.5
    child.result()
    assert waiters(results) == 0


def meta(status: Status, result: int | None = None) -> Record:
    return Record("a", status, msgspec.json.encode({"task_id": "a", "status": status, "result": result, "traceback": None}))


def nobody(task_id: str, terminate: bool) -> None:
    raise AssertionError(f"{task_id} is not to be revoked, terminate={terminate}")


def test_callers_wait_beyond_a_start(results: SqliteResults) -> None:
    result: AsyncResult[int] = AsyncResult("a", Source(lambda: results, nobody, lambda _: None))
    assert (result.status, result.ready()) == ("PENDING", False)
    results.store([meta("STARTED")])
    assert (result.status, result.ready(), result.wait(0)) == ("STARTED", False, False)
    assert result.meta()["status"] == "STARTED"
    with pytest.raises(ResultTimeout):
        result.get(timeout=0)
    results.store([meta("SUCCESS", 5)])
    assert (result.status, result.ready(), result.get(timeout=0)) == ("SUCCESS", True, 5)


def test_an_ignored_end_is_none(results: SqliteResults) -> None:
    results.store([meta("IGNORED")])
    result: AsyncResult[int | None] = AsyncResult("a", Source(lambda: results, nobody, lambda _: None))
    assert (result.status, result.ready()) == ("IGNORED", True)
    assert result.get(timeout=0) is None


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
