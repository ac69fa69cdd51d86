"""When a worker counts as deaf."""

from __future__ import annotations

import pytest

from taskq.workers.watchdog import DOUBT_SECONDS, RECONNECTS, WATCH_SECONDS, Suspicion, Verdict

MAIL = frozenset({"mail"})
SHOP = frozenset({"shop"})


def quiet(suspicion: Suspicion, now: float, first: frozenset[str] | None, second: frozenset[str] | None) -> Verdict | None:
    """What comes of it when nothing is delivered, and the broker answers this and, if it is asked again, that."""
    assert not suspicion.observe(now + WATCH_SECONDS - 0.1, free_slots=True, delivered=0)
    assert suspicion.observe(now + WATCH_SECONDS, free_slots=True, delivered=0)
    verdict = suspicion.answer(now + WATCH_SECONDS, first)
    if not suspicion.observe(now + WATCH_SECONDS + DOUBT_SECONDS, free_slots=True, delivered=0):
        return verdict
    return suspicion.answer(now + WATCH_SECONDS + DOUBT_SECONDS, second)


def test_messages_that_wait_twice_are_a_verdict() -> None:
    assert quiet(Suspicion(0.0), 0.0, MAIL, MAIL | SHOP) == "reconnect"


@pytest.mark.parametrize(
    ("first", "second"), [(frozenset(), MAIL), (MAIL, frozenset()), (MAIL, SHOP), (None, MAIL), (MAIL, None)]
)
def test_what_waits_only_once_or_elsewhere_is_none(first: frozenset[str] | None, second: frozenset[str] | None) -> None:
    suspicion = Suspicion(0.0)
    assert quiet(suspicion, 0.0, first, second) is None
    assert suspicion.ask_at is not None


def test_one_question_at_a_time_is_asked() -> None:
    suspicion = Suspicion(0.0)
    assert suspicion.observe(WATCH_SECONDS, free_slots=True, delivered=0)
    assert suspicion.asked
    assert not suspicion.observe(WATCH_SECONDS + 100, free_slots=True, delivered=0)


@pytest.mark.parametrize(("free_slots", "delivered"), [(True, 1), (False, 0)])
def test_a_delivery_or_a_lack_of_slots_begins_the_time_anew(free_slots: bool, delivered: int) -> None:
    suspicion = Suspicion(0.0)
    assert suspicion.observe(WATCH_SECONDS, free_slots=True, delivered=0)
    assert suspicion.answer(WATCH_SECONDS, MAIL) is None
    now = WATCH_SECONDS + 1
    assert not suspicion.observe(now, free_slots=free_slots, delivered=delivered)
    assert suspicion.ask_at == now + WATCH_SECONDS
    assert quiet(suspicion, now, frozenset(), None) is None


def test_what_is_delivered_while_the_broker_is_asked_makes_the_answer_void() -> None:
    suspicion = Suspicion(0.0)
    assert suspicion.observe(WATCH_SECONDS, free_slots=True, delivered=0)
    assert not suspicion.observe(WATCH_SECONDS + 0.1, free_slots=True, delivered=1)
    assert not suspicion.asked


def test_when_reconnecting_does_not_help_it_gives_up() -> None:
    suspicion, now = Suspicion(0.0), 0.0
    verdicts = []
    for _ in range(RECONNECTS + 1):
        verdicts.append(quiet(suspicion, now, MAIL, MAIL))
        now += WATCH_SECONDS + DOUBT_SECONDS
    assert verdicts == ["reconnect", "reconnect", "give up"]


def test_a_delivery_forgives_everything_and_a_busy_time_nothing() -> None:
    suspicion = Suspicion(0.0)
    end = WATCH_SECONDS + DOUBT_SECONDS
    assert quiet(suspicion, 0.0, MAIL, MAIL) == "reconnect"
    assert not suspicion.observe(end, free_slots=True, delivered=1)
    assert quiet(suspicion, end, MAIL, MAIL) == "reconnect"
    assert not suspicion.observe(2 * end, free_slots=False, delivered=0)
    assert quiet(suspicion, 2 * end, MAIL, MAIL) == "reconnect"
    assert not suspicion.observe(3 * end, free_slots=False, delivered=0)
    assert quiet(suspicion, 3 * end, MAIL, MAIL) == "give up"


def test_a_worker_is_deaf_from_the_verdict_until_something_is_delivered() -> None:
    suspicion, end = Suspicion(0.0), WATCH_SECONDS + DOUBT_SECONDS
    assert not suspicion.deaf
    quiet(suspicion, 0.0, MAIL, MAIL)
    assert suspicion.deaf
    quiet(suspicion, end, MAIL, None)
    assert suspicion.deaf, "a broker that could not be asked has cleared nobody"
    suspicion.observe(2 * end, free_slots=True, delivered=1)
    assert not suspicion.deaf


@pytest.mark.parametrize(("first", "second"), [(frozenset(), MAIL), (MAIL, frozenset())])
def test_a_worker_is_not_deaf_any_more_when_nothing_waits(first: frozenset[str], second: frozenset[str]) -> None:
    suspicion, end = Suspicion(0.0), WATCH_SECONDS + DOUBT_SECONDS
    quiet(suspicion, 0.0, MAIL, MAIL)
    quiet(suspicion, end, first, second)
    assert not suspicion.deaf
