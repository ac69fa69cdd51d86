"""What is remembered of deliveries whose connection broke."""

from __future__ import annotations

import time

import pytest

from taskq.broker.interface import Delivery
from taskq.workers.limbo import REMEMBERED, Ended, Limbo, Return
from taskq.workers.outcome import SUCCEEDED


def delivery(task_id: str, tag: int = 1) -> Delivery:
    return Delivery("mail", tag, task_id.encode(), b"", True)


@pytest.fixture
def limbo() -> Limbo:
    return Limbo(lambda properties: properties.decode() or None)


def test_what_still_runs_takes_over_the_message_that_came_back(limbo: Limbo) -> None:
    running = delivery("a")
    limbo.orphan(running)
    assert running.tag is None
    assert limbo.claim(delivery("a", 9)) is Return.RUNNING
    assert running.tag == 9
    assert limbo.claim(delivery("a", 10)) is Return.STRANGER


def test_an_outcome_waits_for_its_message(limbo: Limbo) -> None:
    running = delivery("a")
    limbo.orphan(running)
    limbo.ended(running, SUCCEEDED)
    end = limbo.claim(delivery("a"))
    assert isinstance(end, Ended)
    assert (end.outcome, end.breaks) == (SUCCEEDED, 0)
    assert limbo.claim(delivery("a")) is Return.STRANGER


def test_what_had_not_begun_is_innocent_once(limbo: Limbo) -> None:
    limbo.unbegun(delivery("a"))
    assert limbo.claim(delivery("b")) is Return.STRANGER
    assert limbo.claim(delivery("a")) is Return.UNBEGUN
    assert limbo.claim(delivery("a")) is Return.STRANGER


def test_messages_without_an_id_are_strangers(limbo: Limbo) -> None:
    limbo.unbegun(delivery(""))
    limbo.unbegun(delivery("a"))
    assert limbo.claim(delivery("")) is Return.STRANGER


def test_what_nobody_asks_for_is_forgotten_however_long_the_outage_was(limbo: Limbo) -> None:
    limbo.unbegun(delivery("a"))
    limbo.ended(delivery("b"), SUCCEEDED)
    limbo.ended(delivery("c"), SUCCEEDED)
    back = time.monotonic() + 10 * REMEMBERED
    limbo.connected(back)
    limbo.forget_old(back)
    assert limbo.claim(delivery("a")) is Return.UNBEGUN
    limbo.forget_old(back + REMEMBERED - 10)
    assert isinstance(limbo.claim(delivery("b")), Ended)
    limbo.forget_old(back + REMEMBERED + 10)
    assert limbo.claim(delivery("c")) is Return.STRANGER
