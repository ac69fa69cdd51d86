"""Control entries: each worker gets all that stand, in one order, whenever it comes, and keeps being told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from taskq.broker import open_session
from taskq.broker.interface import Consumer, Session
from taskq.config import Settings
from taskq.control import Control, Pause, Resume, Revoke, Standing
from tests.conformance.support import message, publish
from tests.support import Hold, consuming, eventually


@pytest.fixture
def other_session(settings: Settings) -> Iterator[Session]:
    session = open_session(settings, 5.0)
    yield session
    session.close()


def say(session: Session, *controls: Control) -> None:
    for control in controls:
        session.control(control, time.monotonic() + 10.0)


def about(queue: str, controls: list[Control]) -> list[Control]:
    """Those of this test: the entries of a broker are everybody's."""
    return [one for one in controls if (one.id if isinstance(one, Revoke) else one.queue).startswith(queue)]


def heard(hold: Hold, queue: str, count: int) -> list[Control]:
    """So many entries, which the consumer must be woken for."""
    controls: list[Control] = []

    def enough() -> bool:
        hold.turn(1.0)
        controls.extend(about(queue, hold.consumer.controls()))
        return len(controls) >= count

    eventually(enough, f"{count} entries are heard")
    return controls


def standing(controls: list[Control]) -> tuple[dict[str, Revoke], set[str]]:
    stand = Standing()
    stand.fold(controls)
    return stand.revoked, stand.paused


def first_heard(consumer: Consumer, queue: str) -> tuple[dict[str, Revoke], set[str]]:
    return standing(about(queue, consumer.controls()))


def test_a_consumer_is_told_of_what_comes(settings: Settings, session: Session, queue: str) -> None:
    entries: list[Control] = [Revoke(queue, terminate=True, at=time.time()), Pause(queue, at=1.0), Resume(f"{queue}.2", at=2.0)]
    with consuming(settings, queue) as hold:
        assert about(queue, hold.consumer.controls()) == []
        latencies = []
        for entry in entries:
            said = time.monotonic()
            say(session, entry)
            assert heard(hold, queue, 1) == [entry]
            latencies.append(time.monotonic() - said)
        assert hold.quiet(0.1)
        assert about(queue, hold.consumer.controls()) == []
    assert min(latencies) < 0.2


def test_a_consumer_is_told_even_if_it_has_no_room_for_messages(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0), message(1))
    with consuming(settings, queue, window=1) as hold:
        hold.receive(1)
        say(session, Pause(queue))
        assert heard(hold, queue, 1) == [Pause(queue)]


def test_a_consumer_that_comes_late_hears_at_once_what_stands(settings: Settings, session: Session, queue: str) -> None:
    revocation = Revoke(queue, at=time.time())
    with consuming(settings, queue) as early:
        say(session, Pause(f"{queue}.1"), revocation, Pause(f"{queue}.2"), Resume(f"{queue}.1"))
        expected = ({queue: revocation}, {f"{queue}.2"})
        with consuming(settings, queue) as late:
            assert first_heard(late.consumer, queue) == expected
        controls: list[Control] = []
        eventually(lambda: _gathers(early, queue, controls) == expected, "the early consumer has heard the same")


def _gathers(hold: Hold, queue: str, controls: list[Control]) -> tuple[dict[str, Revoke], set[str]]:
    hold.turn(0.1)
    controls += about(queue, hold.consumer.controls())
    return standing(controls)


def test_entries_survive_all_who_said_and_heard_them(settings: Settings, queue: str) -> None:
    revocation = Revoke(queue, terminate=True, at=time.time())
    session = open_session(settings, 5.0)
    with consuming(settings, queue) as hold:
        say(session, revocation, Pause(queue))
        heard(hold, queue, 2)
    session.close()
    expected = ({queue: revocation}, {queue})
    again = open_session(settings, 5.0)
    assert standing(about(queue, again.controls())) == expected
    with consuming(settings, queue) as hold:
        assert first_heard(hold.consumer, queue) == expected
        say(again, Resume(queue))
        assert heard(hold, queue, 1) == [Resume(queue)]
    again.close()
    with consuming(settings, queue) as hold:
        assert first_heard(hold.consumer, queue) == ({queue: revocation}, set())


def test_all_hear_the_same_order(settings: Settings, session: Session, other_session: Session, queue: str) -> None:
    with consuming(settings, queue) as left, consuming(settings, queue) as right:
        for number in range(20):
            say((session, other_session)[number % 2], Pause(f"{queue}.{number}"))
        expected: list[Control] = [Pause(f"{queue}.{number}") for number in range(20)]
        assert heard(left, queue, 20) == expected
        assert heard(right, queue, 20) == expected
    assert about(queue, session.controls()) == expected


def test_a_later_entry_takes_the_place_of_an_earlier_one(settings: Settings, session: Session, queue: str) -> None:
    mild, hard = Revoke(queue, at=time.time()), Revoke(queue, terminate=True, at=time.time())
    say(session, mild, Pause(queue), Resume(queue), hard, Pause(queue))
    assert standing(about(queue, session.controls())) == ({queue: hard}, {queue})
    with consuming(settings, queue) as hold:
        assert first_heard(hold.consumer, queue) == ({queue: hard}, {queue})
