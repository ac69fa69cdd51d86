"""The desk: other threads ask, the loop answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskq.errors import ConfigurationError
from taskq.workers import desk
from taskq.workers.desk import Desk, Unanswered


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
