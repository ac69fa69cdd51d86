"""An application with a task for each thing that a test needs to see happen."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Any, Literal

import structlog

from taskq import Attempt, TaskQ
from tests.apps.traces import pass_gate, trace

app = TaskQ("basic")


def end_process(how: str) -> None:
    """End this process: ``exit``, or the name of a signal."""
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[how])
    signal.pause()


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="echo")
def echo(*args: Any, **kwargs: Any) -> list[Any]:
    """Gives back what it was given, with the names of the types."""
    return [*args, *kwargs.values(), *[type(value).__name__ for value in (*args, *kwargs.values())]]


@app.task(name="environment")
def environment() -> list[str]:
    """The names of the variables that it runs with."""
    return sorted(os.environ)


@app.task(name="mark", bind=True)
def mark(attempt: Attempt, key: str, seconds: float = 0.0) -> str:
    """Leaves a trace."""
    time.sleep(seconds)
    trace("mark", key=key, id=attempt.id, crashes=attempt.crashes, redelivered=attempt.redelivered)
    return key


@app.task(name="silent", ignore_result=True)
def silent(key: str) -> str:
    trace("silent", key=key)
    return key


@app.task(name="fail")
def fail(text: str) -> None:
    raise ValueError(text, 7)


@app.task(name="leave")
def leave() -> None:
    sys.exit(4)


@app.task(name="unfaithful")
def unfaithful() -> Any:
    return {1, 2}


@app.task(name="die", bind=True)
def die(attempt: Attempt, how: str, times: int) -> int:
    """Ends its process so many times; returns how often it has."""
    trace("die", id=attempt.id, crashes=attempt.crashes)
    if attempt.crashes < times:
        end_process(how)
    return attempt.crashes


@app.task(name="hold")
def hold(key: str, gate: str) -> str:
    """Runs until the test opens the gate."""
    trace("hold", key=key)
    pass_gate(gate)
    trace("released", key=key)
    return key


@app.task(name="busy", bind=True)
def busy(attempt: Attempt) -> str:
    """The first time, an endless loop; when it comes again, it returns."""
    trace("busy", redelivered=attempt.redelivered, crashes=attempt.crashes)
    while not attempt.redelivered:
        pass
    return "came again"


@app.task(name="follow", bind=True)
def follow(attempt: Attempt, depth: int) -> str:
    """Sends itself, so many times."""
    trace("follow", depth=depth, id=attempt.id, root_id=attempt.root_id, parent_id=attempt.parent_id)
    if depth:
        follow.delay(depth - 1)
    return attempt.id


@app.task(name="talk")
def talk(text: str, through: Literal["logging", "structlog"]) -> None:
    if through == "logging":
        logging.getLogger("shop").warning("%s", text)
    else:
        structlog.get_logger("shop").info(text)
