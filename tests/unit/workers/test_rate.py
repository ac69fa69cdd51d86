"""How many tasks end in a second, of late."""

from __future__ import annotations

import pytest

from taskq.workers.outcome import Outcome
from taskq.workers.rate import SPAN, Rate, counts, finished
from taskq.workers.vitals import Vitals


def test_what_is_passed_on_has_not_ended() -> None:
    vitals = Vitals(0.0)
    for event in ("succeeded", "failed", "given back", "delayed"):
        vitals.ended("add", Outcome(event))
    vitals.ended("", Outcome("revoked"))
    assert counts(vitals) == {"add": 2, "other": 1}
    assert finished(vitals) == 3


def test_the_rate_is_that_of_the_last_minute() -> None:
    vitals, rate = Vitals(0.0), Rate(0.0)
    for second in range(300):
        rate.mark(float(second), vitals)
        if second < 100:
            vitals.ended("add", Outcome("succeeded"))
        if second == 50:
            assert rate.rate(50.0, vitals) == pytest.approx(1.0, abs=0.1)
    assert rate.rate(300.0, vitals) == 0.0
    for _ in range(30):
        vitals.ended("add", Outcome("succeeded"))
    assert rate.rate(300.0, vitals) == pytest.approx(30 / SPAN, rel=0.2)
