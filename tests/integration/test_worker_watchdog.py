"""The watchdog asks a real broker; the loop's clock is played by the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker import open_session
from taskq.workers.watchdog import DOUBT_SECONDS, QUESTION_SECONDS, WATCH_SECONDS, Verdict, Watchdog
from tests.support import PATIENCE, Stage, consuming, eventually


class Loop:
    """What a supervisor's loop does with a watchdog."""

    def __init__(self, stage: Stage) -> None:
        self.now = 0.0
        self.woken = threading.Event()
        self.watchdog = Watchdog(stage.effective(), open_session, [stage.queue], self.woken.set, self.now)

    def turn(self, delivered: int = 0) -> Verdict | None:
        """Let the time pass until the watchdog wants to see something, and wait for its answer."""
        assert self.watchdog.due is not None
        self.now = self.watchdog.due
        self.woken.clear()
        verdict = self.watchdog.observe(self.now, free_slots=True, delivered=delivered)
        if self.watchdog.due is None:
            assert self.woken.wait(PATIENCE)
            verdict = self.watchdog.observe(self.now, free_slots=True, delivered=0)
        return verdict


@pytest.fixture
def loop(stage: Stage) -> Iterator[Loop]:
    loop = Loop(stage)
    yield loop
    loop.watchdog.close()
    assert "taskq-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_messages_that_nobody_delivers_are_noticed(stage: Stage, loop: Loop) -> None:
    stage.client().send_task("add", [1, 2])
    assert [loop.turn() for _ in range(6)] == [None, "reconnect", None, "reconnect", None, "give up"]
    assert loop.now == 3 * (WATCH_SECONDS + DOUBT_SECONDS)


def test_an_empty_queue_is_not_deafness(stage: Stage, loop: Loop) -> None:
    assert [loop.turn() for _ in range(3)] == [None, None, None], "there is no such queue yet"
    stage.client().send_task("add", [1, 2], countdown=100)
    assert [loop.turn() for _ in range(3)] == [None, None, None], "it is not due yet"
    stage.client().send_task("add", [1, 2])
    assert loop.turn() is None
    with consuming(stage.effective(), stage.queue) as hold:
        hold.receive(1)
        assert loop.turn() is None, "another worker has taken it in between"
        assert loop.now == 7 * WATCH_SECONDS + DOUBT_SECONDS


def test_a_paused_queue_is_not_watched(stage: Stage, loop: Loop) -> None:
    stage.client().send_task("add", [1, 2])
    loop.watchdog.queues = frozenset()
    assert [loop.turn() for _ in range(3)] == [None, None, None]


def test_what_the_queues_hold_is_found_out_for_whoever_looks_paused_or_not(stage: Stage, loop: Loop) -> None:
    loop.watchdog.queues = frozenset()
    stage.client().send_task("add", [1, 2])
    assert loop.watchdog.depths() is None, "nobody waits for the answer"
    depths = eventually(loop.watchdog.depths, "the broker has answered")
    assert depths is not None
    assert depths.ready == {stage.queue: 1}
    assert set(depths.oldest) == ({stage.queue} if stage.broker.startswith("sqlite:") else set())
    assert loop.watchdog.depths() is depths, "it is not asked again so soon"


def test_an_answer_that_was_overtaken_by_a_delivery_counts_for_nothing(sqlite_stage: Stage) -> None:
    loop = Loop(sqlite_stage)
    sqlite_stage.client().send_task("add", [1, 2])
    assert loop.turn() is None
    loop.now += DOUBT_SECONDS
    assert loop.watchdog.observe(loop.now, free_slots=True, delivered=0) is None
    assert loop.watchdog.due is None
    assert loop.watchdog.observe(loop.now, free_slots=True, delivered=1) is None
    assert loop.woken.wait(PATIENCE)
    assert loop.watchdog.observe(loop.now, free_slots=True, delivered=0) is None
    assert loop.watchdog.due == loop.now + WATCH_SECONDS
    loop.watchdog.close()


def test_a_broker_that_cannot_be_asked_is_no_verdict_and_delays_no_stop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loop = Loop(Stage(f"amqp://127.0.0.1:{silent.getsockname()[1]}//", "queue", tmp_path))
        assert loop.turn() is None
        assert loop.watchdog.due == 2 * WATCH_SECONDS
        loop.now = loop.watchdog.due
        assert loop.watchdog.observe(loop.now, free_slots=True, delivered=0) is None
        started = time.monotonic()
        loop.watchdog.close()
        assert time.monotonic() - started < QUESTION_SECONDS + 1
