"""The application of workflow tests: small steps that leave traces."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from taskq import Attempt, Ignore, TaskQ, chord
from tests.apps.traces import pass_gate, trace

app = TaskQ("flows")


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="one", bind=True)
def one(attempt: Attempt, number: int) -> int:
    """A member of a chord: it leaves a trace of each run."""
    trace("one", number=number, id=attempt.id)
    return number


@app.task(name="after_gate")
def after_gate(number: int, name: str) -> int:
    pass_gate(name)
    return number


@app.task(name="total")
def total(numbers: list[int]) -> int:
    trace("total", numbers=numbers)
    return sum(numbers)


@app.task(name="note", bind=True)
def note(attempt: Attempt, *values: Any, name: str = "") -> list[Any]:
    trace("note", values=list(values), name=name, id=attempt.id)
    return list(values)


@app.task(name="fail", max_retries=0)
def fail(*values: Any) -> None:
    raise ValueError("no", *values)


@app.task(name="ignore")
def ignore() -> None:
    raise Ignore("nothing to say")


@app.task(name="told")
def told(task_id: str, name: str = "") -> None:
    """An errback of the older kind."""
    trace("told", task_id=task_id, name=name)


@app.task(name="told_more")
def told_more(request: Any, exc: BaseException, traceback: str | None) -> None:
    """An errback of the newer kind."""
    trace("told_more", task_id=request.id, task=request.task, exc=repr(exc), traceback=traceback)


@app.task(name="kill_once", bind=True)
def kill_once(attempt: Attempt, number: int) -> int:
    """Kills its process the first time."""
    trace("kill_once", number=number, crashes=attempt.crashes)
    if not attempt.crashes:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@app.task(name="die", bind=True)
def die(attempt: Attempt) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="spawn", bind=True)
def spawn(attempt: Attempt, count: int) -> str:
    """A task that sends a workflow of its own; returns the id of its result."""
    return str(chord([one.s(number) for number in range(count)], total.s()).delay().id)


@app.task(name="work", bind=True)
def work(attempt: Attempt, number: int, seconds: float = 0.0) -> int:
    """A step for storms; some take long enough to be killed."""
    time.sleep(seconds)
    return number


@app.task(name="finish", bind=True)
def finish(attempt: Attempt, value: Any, key: str) -> Any:
    """The last step of a workflow of a storm."""
    trace("finish", key=key, id=attempt.id, attempt=[attempt.crashes, attempt.deliveries])
    return value


@app.task(name="give_up", bind=True)
def give_up(attempt: Attempt, task_id: str, key: str) -> None:
    """The errback of a workflow of a storm."""
    trace("give_up", key=key, id=attempt.id, attempt=[attempt.crashes, attempt.deliveries], task_id=task_id)
