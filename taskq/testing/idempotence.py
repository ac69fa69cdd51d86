"""Whether a task may run again: its worker is made to crash between any two steps, and the message comes back.

A worker that settles on a broker and a backend of their own takes these steps, and can die before each of them::

    the message is taken ──► the task runs ──► its follow-ups are published ──► its result is stored ──► the message is acked

What had taken effect stays, what had not is gone, and the broker hands the message out again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from taskq import broker
from taskq.app import TaskQ
from taskq.broker.interface import Delivery
from taskq.broker.sqlite.consumer import Committed, SqliteConsumer
from taskq.config import Settings
from taskq.errors import ConfigurationError, NotBound
from taskq.message import Publication
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from taskq.task import Task
from taskq.testing.loop import Loop, Run
from taskq.testing.memory import memory
from taskq.testing.worker import Worker
from taskq.workers.outcome import Outcome

RUN, PUBLISH, STORE, ACK = "it ran", "its follow-ups were published", "its result was stored", "its message was acked"


def assert_idempotent(
    task: Task[..., Any],
    *args: Any,
    check: Callable[[], object],
    reset: Callable[[], object] | None = None,
    **kwargs: Any,
) -> tuple[str, ...]:
    """Assert that it does no harm when the worker crashes and this call of the task runs again.

    The call runs once undisturbed, and then once for each step of its life with a crash before that step, under one task id.
    Each time, ``check()`` must return the same (a copy is kept), and the task the same value. ``reset()`` is called before
    each run; without it, a run finds what the earlier ones left. Returns the moments of the crashes, in words.

    Raises ``AssertionError`` that says when it crashed and what differed, and the task's own error if it fails undisturbed.
    """
    app = _app_of(task)
    if not task.acks_late:
        raise ConfigurationError(f"task {task.name!r} has acks_late=False: it never runs twice, so there is nothing to assert")
    call = _Call(app, task, args, kwargs, reset or (lambda: None), check)
    shared = "" if reset else "; each run found what the earlier ones had left, unless you give reset="
    clean = call.run(_Steps())
    moments = []
    for number, step in enumerate(clean.steps):
        moment = f"before {step}" if not number else f"after {clean.steps[number - 1]} and before {step}"
        moments.append(moment)
        try:
            crashed = call.run(_Steps(crash_before=number))
        except Exception as error:
            raise AssertionError(
                f"task {task.name!r} is not idempotent: with a crash {moment}, it failed: {error!r}"
            ) from error
        if difference := _difference(clean, crashed):
            raise AssertionError(f"task {task.name!r} is not idempotent: with a crash {moment}, {difference}{shared}")
    return tuple(moments)


class Crash(BaseException):
    """The worker dies here. No ``Exception``: whoever survives errors must not survive this."""


class _Steps:
    """Counts the steps of one call, and crashes before one of them: once. Others' messages take no steps."""

    def __init__(self, crash_before: int | None = None) -> None:
        self.taken: list[str] = []
        self.concerned = False
        self._crash_before = crash_before

    def take(self, step: str) -> None:
        """The step is about to be taken."""
        if not self.concerned:
            return
        if len(self.taken) == self._crash_before:
            self._crash_before = None
            raise Crash(step)
        self.taken.append(step)


class _Ended:
    """What a call left behind: the steps, the values that the task returned at each run, and what ``check`` said then."""

    def __init__(self, steps: Sequence[str], values: Sequence[Any], state: object) -> None:
        self.steps = tuple(steps)
        self.values = tuple(values)
        self.state = state


class _Call:
    """One call of a task, to be run again and again, each time on a broker that knows nothing of the time before."""

    def __init__(
        self,
        app: TaskQ,
        task: Task[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        reset: Callable[[], object],
        check: Callable[[], object],
    ) -> None:
        self._app = app
        self._task = task
        self._args = args
        self._kwargs = kwargs
        self._reset = reset
        self._check = check
        self._id: str | None = None

    def run(self, steps: _Steps) -> _Ended:
        """Send the call, and run everything until nothing is left."""
        with memory(self._app, results=True):
            self._reset()
            result = self._task.apply_async(self._args, self._kwargs, task_id=self._id, ignore_result=False)
            self._id = result.id
            worker = _CrashingWorker(self._app, result.id, steps)
            try:
                worker.run()
            except Crash:
                worker.die()
                worker.run()
            finally:
                worker.close()
            result.get(timeout=0)
            return _Ended(steps.taken, worker.values, copy.deepcopy(self._check()))


class _CrashingWorker(Worker):
    def __init__(self, app: TaskQ, task_id: str, steps: _Steps) -> None:
        super().__init__(app)
        self.values: list[Any] = []
        self._task_id = task_id
        self._steps = steps

    def die(self) -> None:
        """The connection breaks, and what was held goes back to the broker."""
        self.close()

    def _open(self, queues: Sequence[str]) -> Loop:
        return _SteppedLoop(self.app, queues, self._hear, self._task_id, self._steps, self.values)


class _SteppedLoop(Loop):
    """A worker whose broker and backend share no transaction: each step of settling takes effect by itself."""

    def __init__(
        self,
        app: TaskQ,
        queues: Sequence[str],
        tell: Callable[[Run], None],
        task_id: str,
        steps: _Steps,
        values: list[Any],
    ) -> None:
        self._task_id = task_id
        self._steps = steps
        self._values = values
        self._identify = broker.identifier(app.settings)
        super().__init__(app, queues, tell)

    def open_consumer(self) -> SqliteConsumer:
        return _SteppedConsumer(self.settings, self.queues, self._steps)

    def open_store(self) -> SqliteResults:
        return _SteppedResults(self.settings.broker, self.settings.result_ttl, self._steps)

    def execute(self, delivery: Delivery) -> Outcome | None:
        self._steps.concerned = self._identify(delivery.properties) == self._task_id
        self._steps.take(RUN)
        outcome = super().execute(delivery)
        if self._steps.concerned and outcome is not None and outcome.event == "succeeded" and outcome.record is not None:
            self._values.append(json.loads(outcome.record.meta)["result"])
        return outcome


class _SteppedConsumer(SqliteConsumer):
    def __init__(self, settings: Settings, queues: Sequence[str], steps: _Steps) -> None:
        super().__init__(settings, queues)
        self._steps = steps

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing holds the steps together."""
        yield

    def publish(self, publications: Iterable[Publication]) -> Committed:
        self._steps.take(PUBLISH)
        return super().publish(publications)

    def ack(self, delivery: Delivery) -> None:
        self._steps.take(ACK)
        super().ack(delivery)
        with super().transaction():
            pass


class _SteppedResults(SqliteResults):
    def __init__(self, url: str, ttl: float, steps: _Steps) -> None:
        super().__init__(url, ttl)
        self._steps = steps

    def store(self, records: Sequence[Record]) -> None:
        if any(record.is_end for record in records):
            self._steps.take(STORE)
        super().store(records)


def _app_of(task: Task[..., Any]) -> TaskQ:
    """The app that the task belongs to. All that a task has of it is the method which sends."""
    app = getattr(task.send, "__self__", None)
    if not isinstance(app, TaskQ):
        raise NotBound(f"task {task.name!r} belongs to no app; take its module in with app.include(...)")
    return app


def _difference(clean: _Ended, crashed: _Ended) -> str | None:
    """What a crash has changed, in words; None if that is nothing."""
    value = clean.values[-1] if clean.values else None
    for other in crashed.values:
        if other != value:
            return f"it returned {other!r}, and undisturbed {value!r}"
    if crashed.state != clean.state:
        return f"check() gave {crashed.state!r}, and undisturbed {clean.state!r}"
    return None
