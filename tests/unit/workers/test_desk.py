"""The desk: other threads ask, the loop answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskq.errors import ConfigurationError, TaskqError
from taskq.workers import desk
from taskq.workers.desk import Desk, Unanswered
from tests.support import eventually


def test_the_loop_answers_in_its_own_thread() -> None:
    woken = threading.Event()
    asked: Desk[str] = Desk(woken.set)

    def refuse(_: str) -> None:
        raise ConfigurationError("no")

    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(asked.ask, lambda loop: (loop, threading.current_thread()))
        assert woken.wait(5.0)
        asked.attend("the loop")
        assert answer.result(5.0) == ("the loop", threading.main_thread())
        woken.clear()
        refused = threads.submit(asked.ask, refuse)
        assert woken.wait(5.0)
        asked.attend("the loop")
        with pytest.raises(ConfigurationError, match="no"):
            refused.result(5.0)


def test_a_loop_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PATIENCE", 0.01)
    with pytest.raises(Unanswered, match="not answered"):
        Desk[str](lambda: None).ask(len)


def test_what_was_not_answered_in_time_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PATIENCE", 0.01)
    asked: Desk[list[str]] = Desk(lambda: None)
    with pytest.raises(Unanswered):
        asked.ask(lambda loop: loop.append("grown"))
    loop: list[str] = []
    asked.attend(loop)
    assert loop == []


def test_a_question_that_fails_in_an_unforeseen_way_is_the_asker_s_trouble() -> None:
    woken = threading.Event()
    asked: Desk[list[int]] = Desk(woken.set)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(asked.ask, lambda loop: loop[0])
        assert woken.wait(5.0)
        asked.attend([])
        with pytest.raises(TaskqError, match="could not answer: IndexError"):
            answer.result(5.0)


def test_a_turn_of_the_loop_answers_so_many_questions_and_the_rest_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MOST_AT_ONCE", 2)
    calls: list[int] = []
    asked: Desk[None] = Desk(lambda: None)
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(asked.ask, lambda _, number=number: calls.append(number)) for number in range(3)]
        eventually(lambda: asked._questions.qsize() == 3)
        asked.attend(None)
        assert len(calls) == 2
        asked.attend(None)
        assert [answer.result(5.0) for answer in answers] == [None] * 3


def test_nobody_waits_for_a_loop_that_has_ended() -> None:
    woken = threading.Event()
    asked: Desk[str] = Desk(woken.set)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(asked.ask, len)
        assert woken.wait(5.0)
        asked.close()
        with pytest.raises(Unanswered, match="has ended"):
            answer.result(1.0)
    with pytest.raises(Unanswered, match="has ended"):
        asked.ask(len)
