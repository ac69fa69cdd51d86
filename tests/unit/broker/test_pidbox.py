"""Whom a command means, and what time it is."""

from __future__ import annotations

import pytest

from taskq.broker.pidbox import Clock, Command
from taskq.errors import UnsupportedFeature


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (Command("ping"), True),
        (Command("ping", destination=[]), True),
        (Command("ping", destination=["taskq@b", "taskq@a"]), True),
        (Command("ping", destination=["taskq@b"]), False),
        (Command("ping", destination=["taskq@b"], pattern="*", matcher="glob"), False),
        (Command("ping", pattern="taskq@*", matcher="glob"), True),
        (Command("ping", pattern="TASKQ@*", matcher="glob"), False),
        (Command("ping", pattern="celery@*", matcher="glob"), False),
        (Command("ping", pattern="", matcher="glob"), True),
        (Command("ping", pattern="celery@*"), True),  # no matcher, so no pattern, as in Kombu
    ],
)
def test_whom_a_command_means(command: Command, meant: bool) -> None:
    assert command.means("taskq@a") == meant


@pytest.mark.parametrize("matcher", ["pcre", "unheard of"])
def test_only_globs_are_matched(matcher: str) -> None:
    with pytest.raises(UnsupportedFeature, match=f"takes no {matcher} pattern"):
        Command("ping", pattern="(a+)+$", matcher=matcher).means("taskq@a")
    with pytest.raises(UnsupportedFeature, match="256 characters"):
        Command("ping", pattern="*" * 256, matcher="glob").means("taskq@a")


def test_the_clock_never_goes_back() -> None:
    clock = Clock()
    assert [clock.forward(), clock.forward()] == [1, 2]
    clock.adjust(41)
    assert clock.forward() == 43
    clock.adjust(3)
    clock.adjust("late")
    clock.adjust(2**200)
    clock.adjust(-(2**200))
    assert clock.forward() == 48
