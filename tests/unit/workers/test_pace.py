"""How many deliveries a child is given."""

from __future__ import annotations

import pytest

from taskq.workers.pace import Pace, worth_a_change


def after(seconds: float, count: int, most: int = 64) -> Pace:
    pace = Pace(most)
    for _ in range(count):
        pace.observe(seconds)
    return pace


def test_tasks_of_unknown_length_come_one_at_a_time() -> None:
    assert Pace(64).depth == 1


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 1e-4])
def test_short_tasks_come_in_batches_of_at_most_the_prefetch(seconds: float) -> None:
    assert after(seconds, 300).depth == 64
    assert after(seconds, 300, most=5).depth == 5
    assert after(seconds, 300, most=1).depth == 1


@pytest.mark.parametrize("seconds", [0.05, 1.0, 3600.0])
def test_long_tasks_come_one_at_a_time(seconds: float) -> None:
    assert after(seconds, 300).depth == 1


def test_one_long_task_among_short_ones_slows_the_feeding_at_once() -> None:
    pace = after(1e-4, 300)
    pace.observe(10.0)
    assert pace.depth == 1


def test_a_few_short_tasks_are_enough_to_begin_with_batches() -> None:
    assert 1 < after(0.001, 30).depth < 64


@pytest.mark.parametrize(
    ("current", "wanted", "worth"),
    [(0, 0, False), (5, 5, False), (0, 1, True), (1, 0, True), (100, 0, True), (10, 12, False), (10, 20, True), (10, 5, True)],
)
def test_small_changes_of_the_window_wait(current: int, wanted: int, worth: bool) -> None:
    assert worth_a_change(current, wanted) is worth
