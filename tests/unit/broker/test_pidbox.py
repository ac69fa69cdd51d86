"""Whom a command means, and what time it is."""

from __future__ import annotations

import pytest

from taskq.broker.pidbox import Clock, Command


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
        (Command("ping", pattern=r"taskq@\w", matcher="pcre"), True),
        (Command("ping", pattern="[", matcher="pcre"), False),
        (Command("ping", pattern="*", matcher="unheard of"), False),
        (Command("ping", pattern="", matcher="glob"), True),
        (Command("ping", pattern="celery@*"), True),  # no matcher, so no pattern, as in Kombu
    ],
)
def test_whom_a_command_means(command: Command, meant: bool) -> None:
    assert command.means("taskq@a") == meant


def test_the_clock_never_goes_back() -> None:
    clock = Clock()
    assert [clock.forward(), clock.forward()] == [1, 2]
    clock.adjust(41)
    assert clock.forward() == 43
    clock.adjust(3)
    clock.adjust("late")
    assert clock.forward() == 46
