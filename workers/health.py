"""Health: whether the worker lives and whether it is ready, told from its vitals alone.

Live means that another process in its place would do no better: the loop turns, and messages that wait come where a child is
free. A worker whose children are all busy is live, and so is one whose broker is away. Ready means that it takes work now.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import NamedTuple

from taskq.workers.vitals import Vitals
from taskq.workers.web import Answer

#: For how long the loop may be held up, in seconds. A slow backend, or the last settling at the end, takes some of them.
HELD_UP = 10.0


class Verdict(NamedTuple):
    """The answer, and why it is this one."""

    good: bool
    why: str


def live(vitals: Vitals, now: float) -> Verdict:
    """Whether the worker lives."""
    held_up = now - vitals.turned_at
    if held_up > HELD_UP:
        return Verdict(False, f"the loop has not turned for {held_up:.0f} s")
    if vitals.connected_since is None:
        return Verdict(True, _away(vitals, now))
    if vitals.deaf:
        return Verdict(False, "messages wait and children are free, and nothing is delivered")
    return Verdict(True, _doing(vitals))


def ready(vitals: Vitals, now: float) -> Verdict:
    """Whether the worker takes work now."""
    alive = live(vitals, now)
    if not alive.good:
        return alive
    if vitals.draining:
        return Verdict(False, f"it is told to end; {_busy(vitals)}")
    if vitals.connected_since is None:
        return Verdict(False, alive.why)
    if vitals.failing:
        return Verdict(False, "the broker or the backend refuses what is asked of it; see the log")
    if not any(place.ready for place in vitals.places):
        return Verdict(False, "no child is ready")
    return alive


def _away(vitals: Vitals, now: float) -> str:
    if vitals.lost_at is None:
        return "the broker has yet to be reached"
    return f"the broker has been away for {now - vitals.lost_at:.0f} s"


def _doing(vitals: Vitals) -> str:
    return f"{'draining' if vitals.draining else 'consuming'}; {_busy(vitals)}"


def _busy(vitals: Vitals) -> str:
    return f"{sum(place.busy for place in vitals.places)} of {len(vitals.places)} children busy"


class Health:
    """Answers who asks over HTTP: from what is known, without a word to the loop, to the application or to the broker."""

    def __init__(self, vitals: Vitals, metrics: Callable[[], Answer]) -> None:
        self._vitals = vitals
        self._metrics = metrics

    def answer(self, path: str) -> Answer:
        """The answer for this path."""
        match path:
            case "/livez":
                return told("live", live(self._vitals, time.monotonic()))
            case "/readyz":
                return told("ready", ready(self._vitals, time.monotonic()))
            case "/metrics":
                return self._metrics()
        return Answer(404, b"here are /livez, /readyz and /metrics\n")


def told(question: str, verdict: Verdict) -> Answer:
    """The verdict as it is sent."""
    body = json.dumps({question: verdict.good, "why": verdict.why}) + "\n"
    return Answer(200 if verdict.good else 503, body.encode(), "application/json")
