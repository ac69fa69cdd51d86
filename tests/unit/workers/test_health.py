"""What counts as live, and what as ready."""

from __future__ import annotations

import json

from taskq.workers.health import HELD_UP, Health, live, ready
from taskq.workers.vitals import Place, Vitals
from taskq.workers.web import Answer

FREE, BUSY, DOWN = Place(7, True, False), Place(8, True, True), Place(None, False, False)


def vitals(*places: Place, now: float = 100.0) -> Vitals:
    """Of a worker that consumes."""
    found = Vitals(now)
    found.connected(now)
    found.places = places or (FREE, BUSY)
    return found


def test_a_worker_that_consumes_is_live_and_ready() -> None:
    assert live(vitals(), 100.0) == (True, "consuming; 1 of 2 children busy")
    assert ready(vitals(), 100.0).good


def test_a_worker_whose_children_are_all_busy_is_live_and_ready() -> None:
    assert live(vitals(BUSY, BUSY), 100.0) == (True, "consuming; 2 of 2 children busy")
    assert ready(vitals(BUSY, BUSY), 100.0).good


def test_a_loop_that_hangs_is_neither() -> None:
    assert live(vitals(), 100.0 + HELD_UP).good
    for verdict in (live(vitals(), 101.0 + HELD_UP), ready(vitals(), 101.0 + HELD_UP)):
        assert verdict == (False, f"the loop has not turned for {HELD_UP + 1:.0f} s")


def test_a_worker_without_its_broker_is_live_and_not_ready() -> None:
    away = Vitals(100.0)
    assert live(away, 101.0) == (True, "the broker has yet to be reached")
    assert not ready(away, 101.0).good
    lost = vitals()
    lost.disconnected(100.0)
    assert live(lost, 103.0) == (True, "the broker has been away for 3 s")
    assert ready(lost, 103.0) == (False, "the broker has been away for 3 s")
    lost.connected(104.0)
    assert ready(lost, 104.0).good


def test_a_deaf_worker_is_neither_but_while_it_connects_anew() -> None:
    deaf = vitals()
    deaf.deaf = True
    assert not live(deaf, 100.0).good
    assert ready(deaf, 100.0) == (False, "messages wait and children are free, and nothing is delivered")
    deaf.disconnected(100.0)
    assert live(deaf, 100.0).good
    assert not ready(deaf, 100.0).good


def test_a_worker_that_drains_or_has_no_child_or_is_refused_is_not_ready() -> None:
    draining = vitals()
    draining.draining = True
    assert live(draining, 100.0) == (True, "draining; 1 of 2 children busy")
    assert ready(draining, 100.0) == (False, "it is told to end; 1 of 2 children busy")
    assert ready(vitals(DOWN, DOWN), 100.0) == (False, "no child is ready")
    assert live(vitals(DOWN, DOWN), 100.0).good
    failing = vitals()
    failing.failing = True
    assert live(failing, 100.0).good
    assert not ready(failing, 100.0).good


def test_the_answers() -> None:
    drained = Vitals(0.0)
    health = Health(drained, lambda: Answer(200, b"metrics"))
    assert health.answer("/metrics").body == b"metrics"
    assert health.answer("/").status == health.answer("/livez/").status == 404
    answer = health.answer("/readyz")
    assert (answer.status, answer.content_type) == (503, "application/json")
    assert set(json.loads(answer.body)) == {"ready", "why"}
