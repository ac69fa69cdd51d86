"""Letters: looked at, moved and removed one by one, by several operators at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from taskq.broker import open_session
from taskq.broker.interface import Session
from taskq.config import Settings
from taskq.errors import UnsupportedFeature
from taskq.message import Message, Publication, dead_letter_queue
from tests.conformance.support import message, numbers, publish
from tests.support import consuming, eventually


@pytest.fixture
def dead(session: Session, queue: str) -> str:
    """A queue of dead letters, ten of them."""
    name = dead_letter_queue(queue)
    publish(session, name, *[letter(number) for number in range(10)])
    return name


@pytest.fixture
def other_session(settings: Settings) -> Iterator[Session]:
    session = open_session(settings, 5.0)
    yield session
    session.close()


def letter(number: int) -> Message:
    return Message(headers={"id": f"id-{number}", "tq-dead-reason": "crashed"}, body=str(number).encode(), correlation_id="c")


def bodies(session: Session, queue: str) -> list[int]:
    """What an operator sees."""
    with closing(session.letters(queue)) as letters:
        return [int(one.body) for _, one in letters]


def has(session: Session, queue: str, count: int) -> None:
    eventually(lambda: session.depth(queue) == count, f"{queue} has {count} messages")


def test_looking_shows_everything_oldest_first_and_changes_nothing(session: Session, dead: str) -> None:
    for _ in range(2):
        with closing(session.letters(dead)) as letters:
            assert [one for _, one in letters] == [letter(number) for number in range(10)]
        has(session, dead, 10)


def test_an_empty_queue_and_one_that_nobody_made_have_no_letters(session: Session, dead: str, queue: str) -> None:
    session.purge(dead)
    assert bodies(session, dead) == []
    assert bodies(session, f"{queue}.nobody") == []
    assert session.depth(f"{queue}.nobody") is None


def test_what_comes_after_the_opening_is_left_for_the_next_time(session: Session, other_session: Session, dead: str) -> None:
    with closing(session.letters(dead)) as letters:
        publish(other_session, dead, letter(10))
        assert len(list(letters)) == 10
    has(session, dead, 11)


def test_what_is_moved_is_there_once_and_what_is_not_stays(settings: Settings, session: Session, queue: str, dead: str) -> None:
    with closing(session.letters(dead)) as letters:
        for handle, one in letters:
            if int(one.body) % 3 == 0:
                letters.move(handle, Publication(queue, one.with_headers(replayed=True)))
    has(session, dead, 6)
    assert bodies(session, dead) == [1, 2, 4, 5, 7, 8]
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(4)) == [0, 3, 6, 9]
        assert hold.quiet(0.1)


def test_what_is_removed_is_gone(session: Session, dead: str) -> None:
    with closing(session.letters(dead)) as letters:
        for handle, one in letters:
            if int(one.body) < 8:
                letters.remove(handle)
    has(session, dead, 2)
    assert bodies(session, dead) == [8, 9]


def test_one_may_stop_in_the_middle(session: Session, dead: str) -> None:
    with closing(session.letters(dead)) as letters:
        handle, one = next(iter(letters))
        assert int(one.body) == 0
        letters.remove(handle)
    has(session, dead, 9)


def test_letters_that_were_let_go_are_there_for_a_worker(settings: Settings, session: Session, dead: str) -> None:
    with closing(session.letters(dead)) as letters:
        assert len(list(letters)) == 10
    with consuming(settings, dead) as hold:
        assert sorted(numbers(hold.receive(10))) == list(range(10))


def test_each_letter_moves_once_though_two_operators_move_all(
    settings: Settings, session: Session, other_session: Session, queue: str, dead: str
) -> None:
    with closing(session.letters(dead)) as left, closing(other_session.letters(dead)) as right:
        seen = [(letters, list(letters)) for letters in (left, right)]
        for letters, found in seen:
            for handle, one in found:
                letters.move(handle, Publication(queue, one))
    has(session, queue, 10)
    has(session, dead, 0)
    with consuming(settings, queue) as hold:
        assert sorted(numbers(hold.receive(10))) == list(range(10))
        assert hold.quiet(0.1)


def test_a_publication_that_is_refused_leaves_the_original(session: Session, queue: str, dead: str) -> None:
    with closing(session.letters(dead)) as letters:
        handle, one = next(iter(letters))
        with pytest.raises(UnsupportedFeature):
            letters.move(handle, Publication(queue, one.with_headers(broken=object())))
    has(session, dead, 10)
    assert not session.depth(queue)


def test_a_session_publishes_after_it_looked(session: Session, queue: str, dead: str) -> None:
    assert len(bodies(session, dead)) == 10
    session.publish([Publication(queue, message(0))], time.monotonic() + 5.0)
    has(session, queue, 1)
