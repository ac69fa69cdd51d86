"""What every backend that keeps a ledger promises: entries change together or not at all, for one of many who try."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from taskq.results.ledger import UNDECIDED, Change, Ledger, may_run, tick_entry
from taskq.results.store import ResultStore
from tests.conformance.results.support import Backend, fresh
from tests.support import eventually


@pytest.fixture
def ledger(store: ResultStore) -> Ledger:
    """The ledger of this backend."""
    return ledger_of(store)


def ledger_of(store: ResultStore) -> Ledger:
    assert store.ledger is not None
    return store.ledger


@pytest.fixture
def key() -> str:
    """What the keys of this test begin with; a strange name is as good as any other."""
    return f"schedule shop/{fresh()} * ä\n{'x' * 3000} "


def test_an_entry_comes_changes_and_goes(ledger: Ledger, key: str) -> None:
    a, b = key + "a", key + "b"
    assert ledger.read([a, b]) == {}
    assert ledger.swap([Change(a, None, b"1")])
    assert ledger.read([a, b]) == {a: b"1"}
    assert ledger.swap([Change(a, b"1", b"2")])
    assert ledger.swap([Change(b, None, b"\x00\xff"), Change(a, b"2", None)], durable=False)
    assert ledger.read([b, a]) == {b: b"\x00\xff"}
    assert ledger.swap([Change(b, b"\x00\xff", b"")])
    assert ledger.read([b]) == {b: b""}
    assert not ledger.swap([Change(b, None, b"x")]), "an empty entry is one"
    assert ledger.read([]) == {}


@pytest.mark.parametrize(("name", "old", "new"), [("a", None, b"2"), ("a", b"0", b"2"), ("b", b"1", b"2"), ("b", b"1", None)])
def test_one_entry_that_is_not_what_it_was_said_to_be_changes_nothing(
    ledger: Ledger, key: str, name: str, old: bytes | None, new: bytes | None
) -> None:
    assert ledger.swap([Change(key + "a", None, b"1")])
    wrong, right = Change(key + name, old, new), Change(key + "c", None, b"new")
    assert not ledger.swap([right, wrong])
    assert not ledger.swap([wrong, right])
    assert ledger.read([key + "a", key + "b", key + "c"]) == {key + "a": b"1"}


def test_an_entry_may_be_a_condition_alone(ledger: Ledger, key: str) -> None:
    fence, a, nothing = key + "fence", key + "a", key + "nothing"
    assert ledger.swap([Change(fence, None, b"mine")])
    assert ledger.swap([Change(fence, b"mine", b"mine"), Change(a, None, b"1")])
    assert ledger.swap([Change(nothing, None, None), Change(a, b"1", b"2")])
    assert not ledger.swap([Change(fence, b"theirs", b"theirs"), Change(a, b"2", b"3")])
    assert not ledger.swap([Change(fence, None, None), Change(a, b"2", b"3")])
    assert ledger.read([a, fence, nothing]) == {a: b"2", fence: b"mine"}


def test_of_many_who_try_one_succeeds(backend: Backend, key: str) -> None:
    """Each with a connection of its own, all at once; with several entries each, in whatever order."""
    stores = [backend.open() for _ in range(8)]

    def attempt(number: int, store: ResultStore, at: int) -> bool:
        old = str(number - 1).encode() if number else None
        changes = [Change(f"{key}{name}", old, str(number).encode()) for name in "abc"]
        return ledger_of(store).swap(changes[::-1] if at % 2 else changes)

    with ThreadPoolExecutor(len(stores)) as pool:
        for number in range(20):
            won = list(pool.map(attempt, [number] * len(stores), stores, range(len(stores))))
            assert won.count(True) == 1


def test_increments_by_many_are_all_counted(backend: Backend, key: str) -> None:
    stores = [backend.open() for _ in range(4)]

    def count(store: ResultStore) -> None:
        ledger, done = ledger_of(store), 0
        while done < 25:
            standing = ledger.read([key]).get(key)
            done += ledger.swap([Change(key, standing, str(int(standing or b"0") + 1).encode())])

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(count, stores))
    assert ledger_of(stores[0]).read([key]) == {key: b"100"}


def test_a_ledger_is_still_there_after_its_results_have_expired(store: ResultStore, ledger: Ledger, key: str) -> None:
    assert ledger.swap([Change(key, None, b"1")])
    store.expire()
    assert ledger.read([key]) == {key: b"1"}


def test_of_the_copies_of_a_tick_the_first_that_asks_may_run_for_ever(ledger: Ledger, key: str) -> None:
    assert may_run(ledger, key, "a"), "of a tick that nobody contests, there is no other copy"
    assert ledger.swap([Change(tick_entry(key), None, UNDECIDED)])
    assert may_run(ledger, key, "b")
    assert not may_run(ledger, key, "a")
    assert may_run(ledger, key, "b")
    assert not may_run(ledger, key, "c")


def test_of_copies_that_ask_at_once_one_may_run(backend: Backend, key: str) -> None:
    stores = [backend.open() for _ in range(6)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for number in range(10):
            tick = f"{key}{number}"
            assert ledger_of(stores[0]).swap([Change(tick_entry(tick), None, UNDECIDED)])
            copies = [f"copy {n}" for n in range(len(stores))]
            may = list(pool.map(may_run, map(ledger_of, stores), [tick] * len(stores), copies))
            assert may.count(True) == 1


def test_an_entry_is_kept_for_as_long_as_is_said(store: ResultStore) -> None:
    ledger, short, long = ledger_of(store), fresh(), fresh()
    assert ledger.swap([Change(short, None, b"1", 0.05), Change(long, None, b"1", 1e9)])

    def over() -> bool:
        store.expire()
        return short not in ledger.read([short])

    eventually(over, "the short one is over its time")
    assert ledger.read([long]) == {long: b"1"}
