"""Execution: a delivery becomes an outcome. This is the only place that calls a task.

Pure but for the task itself: it reads the message, decides, runs, and describes what is to be done. It publishes nothing,
stores nothing and acks nothing.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import msgspec

from taskq import log
from taskq.attempt import Attempt, current
from taskq.broker.interface import Decode, Delivery
from taskq.config import Settings
from taskq.errors import ArgumentRefused, MessageError
from taskq.message import JSON, UNKNOWN_SINCE, Message, Publication, undecodable
from taskq.serialization import decode, plain_result
from taskq.task import Task
from taskq.workers.outcome import SUCCEEDED, Outcome, dead_letter, failure, record

#: An ETA this near counts as reached: clocks of different machines agree no better.
ETA_TOLERANCE = 0.1
#: What is due later than this is looked at again then, in seconds: brokers hold a message for some years at most.
LONGEST_DELAY = 30 * 86_400.0
#: The longest text of a traceback that is kept, in characters.
TRACEBACK_LIMIT = 65_536

logger = log.get_logger("taskq.task")


class Call(msgspec.Struct, frozen=True):
    """What a message says, read but not yet believed: arguments are decoded later."""

    attempt: Attempt
    message: Message
    ignore_result: bool
    eta: float | None
    expires: float | None


class Executor:
    """Runs deliveries in this process, one at a time."""

    def __init__(self, tasks: Mapping[str, Task[..., Any]], settings: Settings, read: Decode, worker: str) -> None:
        self._tasks = tasks
        self._settings = settings
        self._read = read
        self._worker = worker
        self._results = settings.backend_url is not None

    def __call__(self, delivery: Delivery) -> Outcome:
        """Run the delivery's task, or say why not."""
        message = undecodable(delivery.body)
        try:
            message = self._read(delivery.properties, delivery.body)
            call = read_call(message, delivery)
        except MessageError as error:
            return self._dead_letter(delivery.queue, message, "undecodable", str(error))
        now = time.time()
        if call.expires is not None and call.expires <= now:
            return self._expired(call)
        if call.eta is not None and call.eta - now > ETA_TOLERANCE:
            logger.debug("task_delayed", task_id=call.attempt.id, task=call.attempt.task, seconds=round(call.eta - now, 3))
            return Outcome("delayed", (Publication(delivery.queue, message, min(call.eta - now, LONGEST_DELAY)),))
        task = self._tasks.get(call.attempt.task)
        if task is None:
            return self._unknown(call, delivery.queue, now)
        try:
            args, kwargs = read_arguments(message)
        except MessageError as error:
            return self._dead_letter(delivery.queue, message, "undecodable", str(error))
        return self._run(task, call, args, kwargs)

    def _run(self, task: Task[..., Any], call: Call, args: list[Any], kwargs: dict[str, Any]) -> Outcome:
        attempt = call.attempt
        token = current.set(attempt)
        log.bind_task(attempt.id, attempt.task, attempt.number)
        started = time.perf_counter()
        try:
            logger.debug("task_started")
            value = task(*args, **kwargs)
            keep = self._results and not call.ignore_result
            end = record(attempt.id, "SUCCESS", plain_result(value), parent_id=attempt.parent_id) if keep else None
        except BaseException as error:  # the border to the application: whatever it raises is the task's failure
            error = error.with_traceback(_below_ours(error.__traceback__))
            logger.error("task_failed", error=repr(error), seconds=round(time.perf_counter() - started, 6), exc_info=error)
            return self._failed(call, error)
        else:
            logger.info("task_succeeded", seconds=round(time.perf_counter() - started, 6))
            return SUCCEEDED if end is None else Outcome("succeeded", record=end)
        finally:
            log.unbind_task()
            current.reset(token)

    def _failed(self, call: Call, error: BaseException) -> Outcome:
        if not self._results or call.ignore_result:
            return Outcome("failed")
        text = "".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:]
        described = failure(type(error).__qualname__, type(error).__module__, [_plain(arg) for arg in error.args])
        return Outcome("failed", record=record(call.attempt.id, "FAILURE", described, text, call.attempt.parent_id))

    def _expired(self, call: Call) -> Outcome:
        logger.warning("task_expired", task_id=call.attempt.id, task=call.attempt.task)
        if not self._results or call.ignore_result:
            return Outcome("revoked")
        described = failure("TaskRevokedError", "celery.exceptions", ["expired"])
        return Outcome("revoked", record=record(call.attempt.id, "REVOKED", described))

    def _unknown(self, call: Call, queue: str, now: float) -> Outcome:
        """Another worker may know the task, or the next deployment: give it back for a while, but neither drop it nor spin."""
        since, ttl = call.message.headers.get(UNKNOWN_SINCE), self._settings.unknown_task_ttl
        since = float(since) if isinstance(since, (int, float)) and math.isfinite(since) else now
        if now - since >= ttl:
            detail = f"no worker of queue {queue!r} knew task {call.attempt.task!r} for {ttl:g} s"
            return self._dead_letter(queue, call.message, "unknown task", detail)
        if UNKNOWN_SINCE not in call.message.headers:
            logger.warning("task_unknown", task_id=call.attempt.id, task=call.attempt.task, queue=queue, dead_letter_after=ttl)
        delay = min(5.0, max(0.2, ttl / 10), max(0.2, since + ttl - now))
        return Outcome("delayed", (Publication(queue, call.message.with_headers(tq_unknown_since=since), delay),))

    def _dead_letter(self, queue: str, message: Message, reason: str, detail: str) -> Outcome:
        task_id, task = message.headers.get("id"), message.headers.get("task")
        logger.error("task_dead_lettered", task_id=task_id, task=task, queue=queue, reason=reason, detail=detail)
        return dead_letter(queue, message, reason, detail, worker=self._worker, record_end=self._results)


def read_call(message: Message, delivery: Delivery) -> Call:
    """What the message's headers say; raises ``MessageError`` where they are not Celery's protocol 2."""
    headers = message.headers
    task_id, task = headers.get("id"), headers.get("task")
    if not isinstance(task_id, str) or not isinstance(task, str):
        raise MessageError("the headers 'id' and 'task' are missing: this is no message of Celery's protocol 2")
    attempt = Attempt(
        id=task_id,
        task=task,
        queue=delivery.queue,
        retries=_retries(headers),
        crashes=message.crashes + delivery.crashes,
        redelivered=delivery.redelivered,
        root_id=headers.get("root_id"),
        parent_id=headers.get("parent_id"),
        headers=headers,
    )
    return Call(
        attempt, message, bool(headers.get("ignore_result")), _moment(headers.get("eta")), _moment(headers.get("expires"))
    )


def read_arguments(message: Message) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the call; raises ``MessageError`` where they cannot be had, running no code."""
    if message.content_type != JSON:
        raise MessageError(f"the content type is {message.content_type!r}; taskq reads {JSON!r} only")
    if compression := message.headers.get("compression"):
        raise MessageError(f"the body is compressed ({compression}), which this version of taskq does not read")
    match decode(message.body, message.content_encoding):
        case [list() as args, dict() as kwargs, dict() as embed]:
            # Running the task but not what was to follow would be a silent drop.
            if follow := sorted(name for name in ("callbacks", "errbacks", "chain", "chord") if embed.get(name)):
                raise MessageError(f"the message asks for {', '.join(follow)}, which this version of taskq does not run")
            return args, kwargs
    raise MessageError("the body is not [args, kwargs, embed]")


def _below_ours(trace: TracebackType | None) -> TracebackType | None:
    """The user's part of a traceback: it begins below our call of the task."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, Task.__module__):
        trace = trace.tb_next
    return trace


def _retries(headers: Mapping[str, Any]) -> int:
    value = headers.get("retries")
    return value if isinstance(value, int) and value > 0 else 0


def _moment(value: Any) -> float | None:
    """Seconds since the epoch out of an ISO 8601 text; a moment without a zone is UTC, as in Celery."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise MessageError(f"{value!r} is no ISO 8601 moment") from None


def _plain(value: Any) -> Any:
    try:
        return plain_result(value)
    except ArgumentRefused:
        return repr(value)
