from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from taskq.results.store import Barrier, Chords, Gathering, Part, ResultStore
from tests.conformance.results.support import Backend, chords_of, fetched, fresh, record
from tests.support import eventually

WAITING, CONTESTED, OVER = Gathering("waiting"), Gathering("contested"), Gathering("over")


@pytest.fixture
def chords(store: ResultStore) -> Chords:
    return chords_of(store)


@pytest.fixture
def chord(chords: Chords) -> str:
    """One of three members, which is open."""
    name = fresh()
    chords.open([Barrier(name, 3)])
    return name


def part(chord: str, index: int | None, value: object = 0) -> Part:
    return Part(chord, index, f"{chord}-{index}", "SUCCESS", msgspec.json.encode(value))


def complete(*members: Part) -> Gathering:
    return Gathering("complete", members)


def test_the_last_member_completes_the_chord_in_the_order_of_the_header(chords: Chords, chord: str) -> None:
    failed = Part(chord, 1, "b", "FAILURE", b'{"exc_type":"ValueError","exc_message":["no"],"exc_module":"builtins"}')
    last, first = part(chord, 2, {"a": [1, None]}), part(chord, 0, "ä")
    assert chords.count([last], "one") == [WAITING]
    assert chords.count([failed], "two") == [WAITING]
    assert chords.count([first], "three") == [complete(first, failed, last)]


def test_parts_of_one_call_count_one_after_the_other(chords: Chords, chord: str) -> None:
    parts = [part(chord, index) for index in range(3)]
    assert chords.count([], "one") == []
    assert chords.count([*parts, part(fresh(), 0)], "one") == [WAITING, WAITING, complete(*parts), WAITING]


def test_a_member_counts_once_and_its_first_end_is_the_one(chords: Chords, chord: str) -> None:
    first = part(chord, 0, "first")
    again = Part(chord, 0, first.id, "FAILURE", b'{"exc_type":"E"}')
    assert chords.count([first, first, again], "one") == [WAITING] * 3
    assert chords.count([again], "two") == [WAITING]
    assert chords.count([part(chord, 1), part(chord, 2)], "two") == [WAITING, complete(first, part(chord, 1), part(chord, 2))]


def test_one_id_at_two_places_of_the_header_is_two_members(chords: Chords) -> None:
    chord = fresh()
    chords.open([Barrier(chord, 2)])
    twins = Part(chord, 0, "a", "SUCCESS", b"1"), Part(chord, 1, "a", "SUCCESS", b"2")
    assert chords.count(twins, "one") == [WAITING, complete(*twins)]


def test_members_without_an_index_come_last(chords: Chords, chord: str) -> None:
    nameless = Part(chord, None, "a", "SUCCESS", b"1")
    assert chords.count([nameless, nameless, part(chord, 1), part(chord, 0)], "one") == [
        *[WAITING] * 3,
        complete(part(chord, 0), part(chord, 1), nameless),
    ]


def test_a_chord_of_unknown_size_waits(chords: Chords) -> None:
    chord = fresh()
    assert chords.count([part(chord, 0), part(chord, 1)], "one") == [WAITING, WAITING]
    chords.open([Barrier(chord, 2)])
    assert chords.count([part(chord, 1)], "one") == [complete(part(chord, 0), part(chord, 1))]


def test_opening_again_changes_nothing(chords: Chords) -> None:
    chord, parts = fresh(), []
    chords.open([Barrier(chord, 2)])
    parts = [part(chord, 0), part(chord, 1)]
    assert chords.count(parts[:1], "one") == [WAITING]
    chords.open([Barrier(chord, 1), Barrier(fresh(), 5)])
    assert chords.count(parts, "one") == [WAITING, complete(*parts)]
    chords.open([Barrier(chord, 7)])
    assert chords.count(parts[:1], "two") == [CONTESTED]
    chords.close([chord], "one")
    chords.open([Barrier(chord, 2)])
    assert chords.count(parts, "two") == [OVER, OVER]


def test_only_the_holder_of_the_claim_closes_a_chord(chords: Chords, chord: str) -> None:
    parts = [part(chord, index) for index in range(3)]
    chords.close([chord], "one")
    assert chords.count(parts, "one")[-1] == complete(*parts)
    chords.close([chord, fresh()], "two")
    assert chords.count(parts[:1], "two") == [CONTESTED]
    assert chords.count(parts[:1], "one") == [complete(*parts)]
    chords.close([chord], "one")
    chords.close([chord], "one")
    assert chords.count(parts, "one") == [OVER] * 3
    assert chords.count([part(chord, 9)], "two") == [OVER]


def test_the_claim_of_a_holder_that_died_is_taken_over(chords: Chords, chord: str) -> None:
    parts = [part(chord, index) for index in range(3)]
    chords.claim_seconds = 0.15
    assert chords.count(parts, "dead")[-1] == complete(*parts)
    assert chords.count(parts[:1], "heir") == [CONTESTED]
    eventually(lambda: chords.count(parts[:1], "heir") == [complete(*parts)], "the claim is over")
    chords.claim_seconds = 10.0
    assert chords.count(parts[:1], "heir") == [complete(*parts)]
    assert chords.count(parts[:1], "dead") == [CONTESTED]
    chords.close([chord], "dead")
    assert chords.count(parts[:1], "heir") == [complete(*parts)]
    chords.close([chord], "heir")
    assert chords.count(parts[:1], "dead") == [OVER]


def test_a_claim_that_has_run_out_still_closes_the_chord_unless_another_has_taken_it(chords: Chords, chord: str) -> None:
    parts = [part(chord, index) for index in range(3)]
    chords.claim_seconds = 0.001
    assert chords.count(parts, "slow")[-1] == complete(*parts)
    chords.claim_seconds = 10.0
    eventually(lambda: chords.count([part(fresh(), 0)], "x"), "a round trip has passed")
    chords.close([chord], "other")
    chords.close([chord], "slow")
    assert chords.count(parts[:1], "other") == [OVER]


def test_ten_that_count_at_once_complete_a_chord_once(backend: Backend, chords: Chords) -> None:
    everybody = [chords, chords_of(backend.open()), chords_of(backend.open())]
    for _ in range(10):
        chord, together = fresh(), threading.Barrier(10)
        chords.open([Barrier(chord, 10)])

        def count(index: int, chord: str = chord, together: threading.Barrier = together) -> str:
            together.wait()
            [gathering] = everybody[index % 3].count([part(chord, index)], f"worker {index}")
            return gathering.state

        with ThreadPoolExecutor(10) as threads:
            assert sorted(threads.map(count, range(10))) == ["complete"] + ["waiting"] * 9


def test_many_chords_in_one_call_counted_by_two_in_opposite_order(backend: Backend, chords: Chords) -> None:
    """Whatever is locked must be locked in one order."""
    names = [fresh() for _ in range(60)]
    chords.open([Barrier(name, 2) for name in names])
    other = chords_of(backend.open())

    def count(index: int, order: list[str], chords: Chords) -> list[str]:
        return [gathering.state for gathering in chords.count([part(name, index) for name in order], f"worker {index}")]

    with ThreadPoolExecutor(2) as threads:
        states = [*threads.map(count, range(2), (names, names[::-1]), (chords, other))]
    assert sum(row.count("complete") for row in states) == len(names)


def test_a_large_chord(chords: Chords) -> None:
    chord, size = fresh(), 5000
    chords.open([Barrier(chord, size)])
    parts = [part(chord, index, index) for index in range(size)]
    for start in range(0, size, 250):
        found = chords.count(parts[start : start + 250], "one")
    assert found[-1] == complete(*parts)
    chords.close([chord], "one")
    assert chords.count(parts[:1], "one") == [OVER]


def test_what_is_known_of_a_chord_has_a_time_to_live(backend: Backend) -> None:
    store, chord = backend.open(ttl=0.3), fresh()
    chords = chords_of(store)
    chords.open([Barrier(chord, 1)])
    assert chords.count([part(chord, 0)], "one") == [complete(part(chord, 0))]
    chords.close([chord], "one")
    # Never heard of: nobody knows how many members it has.
    eventually(lambda: chords.count([part(chord, 0)], "two") == [WAITING], "the chord is forgotten")
    store.expire()


def test_what_is_known_of_a_chord_outlives_results_by_far(backend: Backend) -> None:
    """Its last member may be delayed for weeks."""
    store, chord, end = backend.open(ttl=0.05), fresh(), record(fresh())
    chords = chords_of(store)
    chords.open([Barrier(chord, 2)])
    assert chords.count([part(chord, 0)], "one") == [WAITING]
    store.store([end])
    eventually(lambda: fetched(store, end.id) is None, "results are over their time")
    while store.expire():
        pass
    assert chords.count([part(chord, 1)], "two") == [complete(part(chord, 0), part(chord, 1))]


def test_members_of_a_chord_that_is_given_up_are_forgotten(backend: Backend) -> None:
    store, chord = backend.open(), fresh()
    chords = chords_of(store)
    chords.keep_seconds = 0.001
    chords.open([Barrier(chord, 301)])
    chords.count([part(chord, index) for index in range(300)], "one")

    def forgotten() -> bool:
        while store.expire():
            pass
        return chords.count([part(chord, 300)], "one") == [WAITING]

    eventually(forgotten, "the chord is forgotten")


def test_one_task_at_two_places_counts_twice(chords: Chords) -> None:
    """An application may give two members the same id."""
    chord = fresh()
    twice = [Part(chord, index, "same", "SUCCESS", b"1") for index in range(3)]
    chords.open([Barrier(chord, 3)])
    assert chords.count([*twice[:2], *twice[:2]], "one") == [WAITING] * 4
    assert chords.count(twice[2:], "one") == [complete(*twice)]


@pytest.mark.parametrize("name", ["caf\udce9.csv", "a\0b", "x" * 10_000, "new\nline"])
def test_names_of_chords_and_members_may_be_anything(chords: Chords, name: str) -> None:
    chord = fresh() + name
    chords.open([Barrier(chord, 2)])
    assert chords.count([Part(chord, 0, name, "SUCCESS", b"1")], "one") == [WAITING]
    [whole] = chords.count([Part(chord, 2**70, name, "SUCCESS", b"2")], "one")
    assert (whole.state, [member.result for member in whole.members]) == ("complete", [b"1", b"2"])
    chords.close([chord], "one")
    assert chords.count([Part(chord, 0, name, "SUCCESS", b"1")], "one") == [OVER]


@dataclass
class Model:
    """What ``Chords`` promises, for one chord and claims that don't run out."""

    size: int | None = None
    counted: dict[int, Part] = field(default_factory=dict)
    holder: str | None = None
    over: bool = False

    def open(self, size: int) -> None:
        self.size = self.size or size

    def count(self, part: Part, index: int, claimant: str) -> Gathering:
        if self.over:
            return OVER
        self.counted.setdefault(index, part)
        if self.size is None or len(self.counted) < self.size:
            return WAITING
        self.holder = self.holder or claimant
        if self.holder != claimant:
            return CONTESTED
        return complete(*[self.counted[index] for index in sorted(self.counted)])

    def close(self, claimant: str) -> None:
        self.over = self.over or self.holder == claimant


workers = some.sampled_from(["one", "two"])
ends = some.lists(some.tuples(some.integers(0, 3), some.integers(0, 9)), min_size=1, max_size=3)
Step = tuple[Literal["open"], int] | tuple[Literal["close"], str] | tuple[Literal["count"], list[tuple[int, int]], str]
steps: some.SearchStrategy[list[Step]] = some.lists(
    some.one_of(
        some.tuples(some.just("count"), ends, workers),
        some.tuples(some.just("close"), workers),
        some.tuples(some.just("open"), some.integers(1, 3)),
    ),
    max_size=10,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_whatever_happens_in_whatever_order(chords: Chords, steps: list[Step]) -> None:
    chord, model = fresh(), Model()
    for step in steps:
        match step:
            case "open", size:
                chords.open([Barrier(chord, size)])
                model.open(size)
            case "close", claimant:
                chords.close([chord], claimant)
                model.close(claimant)
            case "count", ends, claimant:
                parts = [part(chord, index, value) for index, value in ends]
                expected = [model.count(one, index, claimant) for one, (index, _) in zip(parts, ends, strict=True)]
                assert chords.count(parts, claimant) == expected
