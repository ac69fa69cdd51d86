from __future__ import annotations

import gc
import math
import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from taskq.results.handle import AsyncResult, Source
from taskq.results.store import Record, ResultStore, Status
from tests.conformance.results.support import Backend, fetched, fresh, record
from tests.support import eventually

STATUSES: list[Status] = ["STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "IGNORED"]


def test_records_come_back_in_the_order_of_the_ids(store: ResultStore) -> None:
    a, b = record(fresh(), value={"deep": [1, "ä", None]}), record(fresh(), "FAILURE", 3)
    assert store.fetch([]) == []
    assert store.fetch([a.id, b.id]) == [None, None]
    store.store([a, b])
    assert store.fetch([b.id, fresh(), a.id, b.id]) == [b, None, a, b]


def test_what_concerns_the_store_alone_does_not_come_back(store: ResultStore) -> None:
    start = record(fresh(), "STARTED", lasting=True)
    store.store([start])
    assert fetched(store, start.id) == Record(start.id, "STARTED", start.meta, 1)


def test_many_records_in_one_call(store: ResultStore) -> None:
    records = [record(fresh()) for _ in range(3000)]
    store.store([])
    store.store(records)
    assert store.fetch([one.id for one in records]) == records


def test_a_large_record(store: ResultStore) -> None:
    large = record(fresh(), value="x" * 3_000_000)
    store.store([large])
    assert fetched(store, large.id) == large


def replaces(new: Record, old: Record | None) -> bool:
    """The promise of ``ResultStore``, sentence by sentence."""
    if old is None:
        return True
    begins = not new.is_end and old.is_end and new.attempt == old.attempt
    spoils = old.status == "SUCCESS" and new.status != "SUCCESS"
    return new.attempt >= old.attempt and not begins and not spoils


attempts = some.lists(some.tuples(some.sampled_from(STATUSES), some.integers(0, 3), some.booleans()), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attempts)
def test_which_record_replaces_which(store: ResultStore, attempts: list[tuple[Status, int, bool]]) -> None:
    name, stands, batch = fresh(), None, []
    for number, (status, attempt, together) in enumerate(attempts):
        new = record(name, status, attempt, number)
        batch.append(new)
        if replaces(new, stands):
            stands = new
        if not together:
            store.store(batch)
            batch = []
            assert fetched(store, name) == stands
    store.store(batch)
    assert fetched(store, name) == stands


def test_a_record_ends_with_its_time_to_live_and_then_fences_nothing(backend: Backend, store: ResultStore) -> None:
    first, earlier = record(fresh(), "SUCCESS", 5), record(fresh())
    short = backend.open(ttl=0.05)
    short.store([first, record(earlier.id, "SUCCESS", 5)])
    eventually(lambda: fetched(store, first.id) is None, "the record is over its time")
    store.store([earlier])
    assert fetched(store, earlier.id) == earlier


def test_a_start_has_a_time_to_live_unless_it_is_lasting(backend: Backend, store: ResultStore) -> None:
    short = backend.open(ttl=0.05)
    passing, lasting = record(fresh(), "STARTED"), record(fresh(), "STARTED", lasting=True)
    short.store([lasting, passing])
    eventually(lambda: fetched(store, passing.id) is None, "the beginning is over its time")
    assert fetched(store, lasting.id) is not None
    short.store([record(lasting.id, "FAILURE")])
    eventually(lambda: fetched(store, lasting.id) is None, "the end is over its time")


def test_what_is_over_its_time_is_forgotten(backend: Backend, store: ResultStore) -> None:
    kept = record(fresh())
    store.store([kept])
    backend.open(ttl=0.001).store([record(fresh()) for _ in range(2500)])
    more, calls = True, 0
    while more:
        began = time.monotonic()
        more = store.expire()
        calls += 1
        assert time.monotonic() - began < 1.5, "a call is bounded, however much there is"
    # Redis forgets by itself.
    assert calls > 1 or backend.kind == "redis"
    assert fetched(store, kept.id) == kept


def test_forgotten_records_are_gone_and_fence_nothing(store: ResultStore) -> None:
    a, b, c = record(fresh(), attempt=7), record(fresh()), record(fresh())
    store.store([a, b, c])
    store.forget([a.id, b.id, fresh()])
    store.forget([])
    assert store.fetch([a.id, b.id, c.id]) == [None, None, c]
    store.store([record(a.id, "FAILURE")])
    assert fetched(store, a.id) == record(a.id, "FAILURE")


def test_many_threads_share_a_store(store: ResultStore) -> None:
    wrong: list[object] = []

    def use(_: int) -> None:
        for number in range(30):
            mine = record(fresh(), value=number)
            store.store([mine])
            if fetched(store, mine.id) != mine or store.wait(mine.id, 5.0) != mine:
                wrong.append(mine)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


#: How often a result is asked for; ``GETS=100000`` for the whole of what is promised.
GETS = int(os.environ.get("GETS", "4000"))


def test_asking_again_and_again_takes_no_memory_and_no_descriptors(store: ResultStore) -> None:
    ids = [fresh() for _ in range(100)]
    store.store([record(task_id, value=7) for task_id in ids])

    def ask(times: int) -> tuple[int, int]:
        for number in range(times):
            result: AsyncResult[int] = AsyncResult(ids[number % 100], Source(lambda: store, lambda *_: None, lambda _: None))
            assert result.get(timeout=5.0) == 7
            # These are not there, and waited for: for each, somebody has to be told, and told that it is over.
            if number % 50 == 0:
                assert store.wait(fresh(), 0.0005) is None
        gc.collect()
        return resident(), len(os.listdir("/proc/self/fd"))

    memory, descriptors = ask(GETS // 10)
    more_memory, more_descriptors = ask(GETS)
    assert more_memory - memory < 3_000_000
    assert more_descriptors == descriptors


@pytest.mark.parametrize("status", STATUSES)
def test_the_name_of_an_id_may_be_anything(store: ResultStore, status: Status) -> None:
    odd = record(f"{fresh()} 'ä%_\\\" {math.pi}", status)
    store.store([odd])
    assert fetched(store, odd.id) == odd
