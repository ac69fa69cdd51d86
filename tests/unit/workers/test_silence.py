"""Zygotes that say nothing, on a clock of the test's own."""

from __future__ import annotations

from taskq.workers.silence import SILENT_SECONDS, Silence


def test_one_that_owes_a_word_for_too_long_is_silent() -> None:
    silence = Silence[str]()
    for second in range(100, 100 + int(SILENT_SECONDS)):
        assert silence.look({"zygote"}, float(second)) == []
        assert silence.due == 100.0 + SILENT_SECONDS
    assert silence.look({"zygote", "other"}, 100.0 + SILENT_SECONDS) == ["zygote"]
    assert silence.due == 100.0 + 2 * SILENT_SECONDS


def test_whatever_it_says_is_enough() -> None:
    silence = Silence[str]()
    for second in range(100, 200):
        if second % 8 == 0:
            silence.heard("zygote")
        assert silence.look({"zygote"}, float(second)) == []


def test_one_that_owes_nothing_may_be_silent() -> None:
    silence = Silence[str]()
    for second in range(100, 200):
        assert silence.look({"zygote"} if second % 8 else (), float(second)) == []
    assert silence.look((), 200.0) == []
    assert silence.due is None


def test_the_time_begins_anew_where_nobody_looked() -> None:
    silence = Silence[str]()
    for second in (100.0, 101.0, 102.0, 200.0, 201.0):
        assert silence.look({"zygote"}, second) == []
    assert silence.due == 200.0 + SILENT_SECONDS
