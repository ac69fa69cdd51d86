"""Chaos, in short: what the broker confirmed is done in the end, whatever was killed, cut, stopped or filled up meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.chaos.arena import Arena, rabbitmq_arena, sqlite_arena
from tests.chaos.plague import plague
from tests.chaos.report import Report
from tests.chaos.storm import storm

SEED = 20
SECONDS = 6.0

Open = Callable[[Path], AbstractContextManager[Arena]]
each_broker = pytest.mark.parametrize("opened", [sqlite_arena, rabbitmq_arena])


def kept(report: Report) -> bool:
    """Whether every promise was kept; says what happened."""
    print("\n".join(f"{name}: {value}" for name, value in report.rows.items()))
    return not report.faults


@pytest.mark.timeout(150)
@each_broker
def test_whatever_happens_each_call_comes_to_one_end(opened: Open, tmp_path: Path) -> None:
    with opened(tmp_path) as arena:
        report = storm(arena, SEED, SECONDS)
    assert kept(report), report.text()


@pytest.mark.timeout(150)
@each_broker
def test_tasks_that_kill_their_worker_are_told_from_their_neighbours(opened: Open, tmp_path: Path) -> None:
    with opened(tmp_path) as arena:
        report = plague(arena, SEED, guilty=1, workers=2)
    assert kept(report), report.text()
