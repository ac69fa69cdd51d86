"""What the loop counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from taskq.broker.interface import Delivery
from taskq.message import DEAD_REASON, Message, Publication
from taskq.workers.outcome import SUCCEEDED, Outcome, again, dead_letter
from taskq.workers.vitals import MOST_TASKS, WAIT_BOUNDS, Histogram, Place, Vitals


@dataclass
class Seen:
    """A slot as it is looked at."""

    process_id: int | None
    ready: bool
    pending: dict[int, Delivery]


MAIL = Message(headers={"task": "mail", "id": "1"}, body=b"[[],{},{}]")


@pytest.mark.parametrize(("value", "place"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (9.0, 2)])
def test_an_observation_counts_below_its_bound(value: float, place: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert (histogram.counts[place], sum(histogram.counts), histogram.sum) == (1, 1, value)


def test_what_a_child_reports_is_counted_by_task() -> None:
    vitals = Vitals(0.0)
    vitals.ended("mail", SUCCEEDED, 0.3, 2.0)
    vitals.ended("mail", Outcome("retried"), 0.1)
    vitals.ended("mail", Outcome("revoked"))
    tally = vitals.tallies["mail"]
    assert tally.outcomes == {"succeeded": 1, "retried": 1, "revoked": 1}
    assert (sum(tally.runs.counts), tally.runs.sum) == (2, 0.4), "what was revoked before it began has not run"
    assert (sum(tally.waits.counts), tally.waits.counts[WAIT_BOUNDS.index(2.5)]) == (1, 1)


def test_what_the_supervisor_decides_is_counted_by_the_name_in_the_message() -> None:
    vitals = Vitals(0.0)
    vitals.decided(again("crashed", "mail", MAIL))
    vitals.decided(dead_letter("mail", MAIL, "crashed", "3 times", worker="w", end=None))
    vitals.decided(Outcome("revoked", (Publication("mail", Message(headers={"task": "errback"}, body=b"")),)))
    vitals.decided(dead_letter("mail", Message(headers={"task": 7}, body=b""), "undecodable", "?", worker="w", end=None))
    assert vitals.tallies["mail"].outcomes == {"crashed": 1, "dead-lettered": 1}
    assert vitals.other.outcomes == {"revoked": 1, "dead-lettered": 1}
    assert vitals.dead_letters == {"crashed": 1, "undecodable": 1}


def test_the_reason_of_a_dead_letter_is_the_one_in_its_header() -> None:
    letter = dead_letter("mail", MAIL, "rejected", "no", worker="w", end=None)
    assert letter.publish[0].message.headers[DEAD_REASON] == "rejected"
    vitals = Vitals(0.0)
    vitals.ended("mail", letter)
    assert vitals.dead_letters == {"rejected": 1}


def test_tasks_beyond_the_first_are_counted_together() -> None:
    vitals = Vitals(0.0)
    for number in range(MOST_TASKS + 50):
        vitals.ended(f"task {number}", SUCCEEDED)
    vitals.ended("task 0", SUCCEEDED)
    assert len(vitals.tallies) == MOST_TASKS
    assert (vitals.tallies["task 0"].outcomes, vitals.other.outcomes) == ({"succeeded": 2}, {"succeeded": 50})


def test_a_turn_shows_the_slots_and_deliveries_are_counted() -> None:
    vitals = Vitals(0.0)
    vitals.turned(2.0, [Seen(7, True, {1: Delivery("mail", 1, b"", b"", False)})], held=1, failing=False)
    assert (vitals.turned_at, vitals.places, vitals.held) == (2.0, (Place(7, True, True),), 1)
    vitals.arrived([], 3.0)
    vitals.arrived([Delivery("mail", 1, b"", b"", redelivered) for redelivered in (False, True)], 4.0)
    assert vitals.delivered_at == 4.0
    assert (vitals.delivered, vitals.redelivered) == (2, 1)
