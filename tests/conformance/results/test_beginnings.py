"""A task that runs at most once begins once in each round, whoever asks and however often its message comes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from taskq.results.store import Leave, Record, ResultStore, Status
from tests.conformance.results.support import Backend, fetched, fresh, record
from tests.support import eventually


def of_run(task_id: str, run: str, status: Status = "STARTED", *, turn: int = 0, attempt: int = 1) -> Record:
    """A record that the run of this name writes, in this round."""
    plain = record(task_id, status, attempt, lasting=status == "STARTED")
    meta = {**msgspec.json.decode(plain.meta), "round": turn, "run": run, "at_most_once": True}
    return msgspec.structs.replace(plain, meta=msgspec.json.encode(meta), round=turn, run=run)


def of_another(task_id: str, status: Status = "FAILURE", *, turn: int = 0, attempt: int = 1) -> Record:
    """What somebody writes who does not run the task: that it was lost, for example."""
    plain = record(task_id, status, attempt, "believed")
    meta = {**msgspec.json.decode(plain.meta), "round": turn}
    return msgspec.structs.replace(plain, meta=msgspec.json.encode(meta), round=turn)


def standing(store: ResultStore, task_id: str) -> tuple[str, object]:
    """The status that stands, and the run or the words."""
    found = fetched(store, task_id)
    assert found is not None
    meta = msgspec.json.decode(found.meta)
    return found.status, meta.get("run") or meta["result"]


def test_the_first_that_asks_begins_and_may_ask_again(store: ResultStore) -> None:
    name = fresh()
    assert store.begin([]) == []
    assert store.begin([of_run(name, "a")]) == ["granted"]
    assert store.begin([of_run(name, "a"), of_run(name, "b")]) == ["granted", "taken"]
    assert standing(store, name) == ("STARTED", "a")


def test_many_in_one_call_each_by_itself(store: ResultStore) -> None:
    names = [fresh() for _ in range(1200)]
    assert store.begin([of_run(name, f"a{name}") for name in names]) == ["granted"] * len(names)
    again = [of_run(name, f"b{name}") for name in names[:2]]
    assert store.begin([again[0], of_run(fresh(), "c"), again[1]]) == ["taken", "granted", "taken"]
    both = fresh()
    assert store.begin([of_run(both, "a"), of_run(both, "b")]) == ["granted", "taken"]


def test_of_those_that_ask_at_once_one_begins(backend: Backend) -> None:
    stores = [backend.open() for _ in range(6)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for _ in range(20):
            name = fresh()
            leaves = pool.map(lambda number, name=name: stores[number].begin([of_run(name, f"{number}")]), range(len(stores)))
            assert sorted(leave for [leave] in leaves) == ["granted", *["taken"] * 5]


@pytest.mark.parametrize("attempt", [1, 7])
@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE", "REVOKED", "IGNORED"])
def test_what_has_ended_does_not_begin_again(store: ResultStore, end: Status, attempt: int) -> None:
    name = fresh()
    store.begin([of_run(name, "a")])
    store.store([of_run(name, "a", end)])
    assert store.begin([of_run(name, "b", attempt=attempt)]) == ["over"]
    assert store.begin([of_run(name, "a", attempt=attempt)]) == ["over"]
    assert standing(store, name) == (end, "a")


def test_a_copy_that_was_given_back_meanwhile_is_no_later_round(store: ResultStore) -> None:
    name = fresh()
    store.begin([of_run(name, "a")])
    assert store.begin([of_run(name, "b", attempt=9)]) == ["taken"]


def test_a_retry_and_a_replay_begin_anew(store: ResultStore) -> None:
    name = fresh()
    store.begin([of_run(name, "a")])
    assert store.begin([of_run(name, "b", turn=1, attempt=2)]) == ["granted"]
    assert store.begin([of_run(name, "a"), of_run(name, "c", turn=1)]) == ["taken", "taken"]
    store.store([of_run(name, "a", "SUCCESS")])
    assert standing(store, name) == ("STARTED", "b"), "the end of a round that is over"
    store.store([of_run(name, "b", "FAILURE", turn=1, attempt=2)])
    assert store.begin([of_run(name, "d", turn=3, attempt=4)]) == ["granted"]
    assert standing(store, name) == ("STARTED", "d")


def test_what_has_succeeded_is_over_for_ever(store: ResultStore) -> None:
    """It was believed lost, and its dead letter is replayed."""
    name = fresh()
    store.begin([of_run(name, "a")])
    store.store([of_another(name)])
    store.store([of_run(name, "a", "SUCCESS")])
    assert store.begin([of_run(name, "b", turn=1, attempt=2)]) == ["over"]


@pytest.mark.parametrize("attempt", [1, 5])
@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE"])
def test_the_run_that_has_begun_knows_best_how_it_ended(store: ResultStore, end: Status, attempt: int) -> None:
    first, last = fresh(), fresh()
    store.begin([of_run(first, "a"), of_run(last, "a")])
    store.store([of_another(first, attempt=attempt)])
    assert standing(store, first) == ("FAILURE", "believed")
    store.store([of_run(first, "a", end)])
    store.store([of_run(last, "a", end)])
    store.store([of_another(last, attempt=attempt), of_another(last, "REVOKED", attempt=attempt)])
    assert [standing(store, name) for name in (first, last)] == [(end, "a")] * 2


def test_what_was_believed_lost_does_not_begin_after_that(store: ResultStore) -> None:
    """Not even by the run that had leave: the word is out that it is lost, and it has not begun yet."""
    name = fresh()
    store.begin([of_run(name, "a")])
    store.store([of_another(name), of_another(name, "REVOKED")])
    assert store.begin([of_run(name, "a"), of_run(name, "b")]) == ["over", "over"]
    assert store.begin([of_run(name, "c", turn=1, attempt=2)]) == ["granted"]


def test_a_later_round_ends_without_having_begun(store: ResultStore) -> None:
    name = fresh()
    store.begin([of_run(name, "a")])
    store.store([of_run(name, "a", "FAILURE")])
    store.store([of_another(name, "REVOKED", turn=1, attempt=2)])
    assert standing(store, name) == ("REVOKED", "believed")
    store.store([of_run(name, "a", "FAILURE")])
    assert standing(store, name) == ("REVOKED", "believed")


def test_a_note_that_it_has_started_is_no_leave(store: ResultStore) -> None:
    """As of a task that ran more than once before it was deployed anew, or of a Celery worker."""
    name = fresh()
    store.store([record(name, "STARTED")])
    assert store.begin([of_run(name, "a")]) == ["granted"]


def test_who_has_leave_and_does_not_begin_gives_it_back(store: ResultStore) -> None:
    name, other = fresh(), fresh()
    mine = of_run(name, "a", turn=1, attempt=2)
    store.begin([mine, of_run(other, "a")])
    store.release([])
    store.release([of_run(name, "b", turn=1), of_run(fresh(), "a"), mine])
    assert store.begin([of_run(name, "late"), of_run(other, "b")]) == ["taken", "taken"], "only its own leave is given back"
    assert store.begin([of_run(name, "c", turn=1), of_run(name, "d", turn=1)]) == ["granted", "taken"]
    store.release([mine])
    assert standing(store, name) == ("STARTED", "c")
    store.store([of_run(name, "c", "SUCCESS", turn=1)])
    store.release([of_run(name, "c", turn=1)])
    assert standing(store, name) == ("SUCCESS", "c"), "what has ended has begun"


def test_what_is_replaced_stands_as_it_was_fetched(store: ResultStore) -> None:
    begun = [of_run(fresh(), "a") for _ in range(3)]
    store.begin(begun)
    assert store.replace([]) == []
    ended = begun[2]
    store.store([of_run(ended.id, "a", "SUCCESS")])
    changes = [(old, old.meta.replace(b'"run"', b'"note":1,"run"')) for old in begun]
    missing = of_run(fresh(), "a")
    assert store.replace([*changes, (missing, missing.meta)]) == [True, True, False, False]
    assert [fetched(store, old.id).meta for old, _ in changes[:2]] == [meta for _, meta in changes[:2]]  # type: ignore[union-attr]  # None fails too
    assert store.replace(changes) == [False, False, False], "only once"
    assert standing(store, begun[0].id) == ("STARTED", "a")
    assert store.begin([of_run(begun[0].id, "b")]) == ["taken"]
    store.store([of_another(begun[0].id)])
    assert standing(store, begun[0].id)[0] == "FAILURE"
    store.store([of_run(begun[0].id, "a", "SUCCESS")])
    assert standing(store, begun[0].id) == ("SUCCESS", "a"), "the run itself has the last word all the same"


def test_of_those_that_replace_at_once_one_does(backend: Backend) -> None:
    stores = [backend.open() for _ in range(6)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for _ in range(20):
            old = of_run(fresh(), "a")
            stores[0].begin([old])

            def replace(number: int, old: Record = old) -> bool:
                [done] = stores[number].replace([(old, old.meta[:-1] + b',"by":%d}' % number)])
                return done

            assert sorted(pool.map(replace, range(len(stores)))) == [*[False] * 5, True]


def test_what_is_replaced_lasts_as_long_as_it_would_have(backend: Backend) -> None:
    store = backend.open(ttl=0.3)
    passing, lasting = record(fresh(), "STARTED"), of_run(fresh(), "a")
    store.store([passing])
    store.begin([lasting])
    assert store.replace([(old, old.meta[:-1] + b',"note":1}') for old in (passing, lasting)]) == [True, True]
    eventually(lambda: fetched(store, passing.id) is None, "it is over its time")
    assert fetched(store, lasting.id) is not None


def test_a_beginning_lasts_and_its_end_does_not(backend: Backend, store: ResultStore) -> None:
    short, passing, name = backend.open(ttl=0.05), record(fresh()), fresh()
    short.begin([of_run(name, "a")])
    short.store([passing])
    eventually(lambda: fetched(store, passing.id) is None, "results are over their time")
    assert store.begin([of_run(name, "b")]) == ["taken"]
    short.store([of_run(name, "a", "SUCCESS")])
    eventually(lambda: fetched(store, name) is None, "the end is over its time")
    assert store.begin([of_run(name, "c")]) == ["granted"]


@pytest.mark.parametrize("name", ["caf\udce9.csv", "a\0b", "x" * 10_000, "new\nline", "ä 😀"])
def test_the_name_may_be_anything(store: ResultStore, name: str) -> None:
    task_id = fresh() + name
    odd: list[Leave] = store.begin([msgspec.structs.replace(of_run("x", "a"), id=task_id)])
    assert odd == ["granted"]
    assert store.begin([msgspec.structs.replace(of_run("x", "b"), id=task_id)]) == ["taken"]
    found = fetched(store, task_id)
    assert found is not None
    assert (found.id, found.status) == (task_id, "STARTED")
