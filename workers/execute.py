"""Execution: a delivery becomes an outcome. This is the only place that calls a task.

Pure but for the task itself: it reads the message, decides, runs, and describes what is to be done. It publishes nothing,
stores nothing and acks nothing.
"""

from __future__ import annotations

import math
import os
import socket
import time
import traceback
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol

from taskq import log
from taskq.attempt import current
from taskq.broker.interface import Decode, Delivery
from taskq.builtin import builtins
from taskq.config import Settings
from taskq.errors import ArgumentRefused, Ignore, MessageError, Reject, Retry, SoftTimeLimitExceeded, Terminated
from taskq.message import ALONE, RETURNS, SENT, SUSPECTED, TICK_COPY, UNKNOWN_SINCE, Message, Publication, undecodable
from taskq.results.store import Record, Status
from taskq.retry import RetryPolicy
from taskq.serialization import plain_result
from taskq.step import NOTHING_FOLLOWS
from taskq.task import Task, router
from taskq.workers.call import Arguments, Call, read_arguments, read_call, with_failure
from taskq.workers.ending import ended_badly, ended_well, read_embed
from taskq.workers.note import Terms
from taskq.workers.outcome import SUCCEEDED, Outcome, again, dead_letter, failure, record, revoked, with_attempt

#: An ETA this near counts as reached: clocks of different machines agree no better.
ETA_TOLERANCE = 0.1
#: What is due later than this is looked at again then, in seconds: brokers hold a message for some years at most.
LONGEST_DELAY = 30 * 86_400.0
#: After how many seconds a message that its task has rejected to the queue comes again.
REJECT_DELAY = 1.0
#: The longest text of a traceback that is kept, in characters.
TRACEBACK_LIMIT = 65_536

logger = log.get_logger("taskq.task")


class Surroundings(Protocol):
    """What the run of a task needs of the process that it runs in."""

    def met(self, task: str, waited: float) -> None:
        """The message is of this task, which is known here, and has waited for so many seconds; below 0: nobody knows."""

    def may_begin(self, begun: Record) -> bool:
        """Have it recorded that the task begins; False if it must not."""

    def is_the_one(self) -> bool:
        """Whether of all copies of a schedule's tick it is this message that may run."""

    def begins(self, begun: Record) -> None:
        """Have it recorded that the task begins, for whoever looks at its workflow."""

    def agree(self, terms: Terms) -> None:
        """The task begins now, under these terms. From here on it may be interrupted."""

    def release(self) -> bool:
        """The task has ended and must not be interrupted any more; returns whether it was terminated."""


class Alone:
    """Surroundings without a supervisor: nobody enforces anything."""

    def met(self, task: str, waited: float) -> None:
        """Nobody counts."""

    def may_begin(self, begun: Record) -> bool:  # noqa: ARG002  # the protocol's signature
        """It may."""
        return True

    def is_the_one(self) -> bool:
        """There is no other."""
        return True

    def begins(self, begun: Record) -> None:
        """Nobody looks."""

    def agree(self, terms: Terms) -> None:
        """Nobody is told."""

    def release(self) -> bool:
        """Nobody terminates anything."""
        return False


def task_names(tasks: Mapping[str, Task[..., Any]]) -> tuple[str, ...]:
    """The application's tasks in the order in which children number them."""
    return tuple(sorted(tasks))


class Executor:
    """Runs deliveries in this process, one at a time."""

    def __init__(self, tasks: Mapping[str, Task[..., Any]], settings: Settings, read: Decode, worker: str) -> None:
        self.surroundings: Surroundings = Alone()
        self.names = task_names(tasks)
        self._tasks = {**builtins(tasks), **tasks}
        self._settings = settings
        self._read = read
        self._worker = worker
        self._route = router(tasks, settings.default_queue)
        self._results = settings.backend_url is not None
        self._keeps = settings.keeps_results
        #: The name of the run that is under way, where its task runs at most once.
        self._run_name: str | None = None

    def __call__(self, delivery: Delivery) -> Outcome | None:
        """Run the delivery's task, or say why not; None if it must not even begin here."""
        message = undecodable(delivery.body)
        try:
            message = self._read(delivery.properties, delivery.body)
            task = self._tasks.get(str(message.headers.get("task")))
            call = read_call(message, delivery, task.retry_policy if task is not None else RetryPolicy())
        except MessageError as error:
            return self._dead_letter(delivery.queue, message, "undecodable", str(error))
        now = time.time()
        if task is not None:
            self.surroundings.met(task.name, _waited(message, now))
        if call.expires is not None and call.expires <= now:
            return self._expired(call)
        if call.eta is not None and call.eta - now > ETA_TOLERANCE:
            logger.debug("task_delayed", task_id=call.attempt.id, task=call.attempt.task, seconds=round(call.eta - now, 3))
            later = message.with_headers(**{SENT: call.eta})
            return Outcome("delayed", (Publication(delivery.queue, later, min(call.eta - now, LONGEST_DELAY)),))
        if task is None:
            return self._unknown(call, delivery.queue, now)
        try:
            arguments = with_failure(read_arguments(message, self._keeps), message, task)
        except MessageError as error:
            return self._dead_letter(delivery.queue, message, "undecodable", str(error))
        self._run_name = None if task.acks_late else uuid.uuid4().hex
        run = self._run if task.acks_late else self._run_at_most_once
        return run(task, call, arguments) if self._is_the_one(call) else Outcome("dropped")

    def _is_the_one(self, call: Call) -> bool:
        """Whether this may run, though it may be one of several copies of a schedule's tick."""
        if TICK_COPY not in call.message.headers or self.surroundings.is_the_one():
            return True
        logger.warning("tick_copy_dropped", task_id=call.attempt.id, task=call.attempt.task)
        return False

    def _run_at_most_once(self, task: Task[..., Any], call: Call, arguments: Arguments) -> Outcome | None:
        """Have the beginning recorded first: whoever finds that record with a message that came back lets it be."""
        attempt = call.attempt
        if self._keeps:
            begun = self._beginning(call)
            if begun is None or not self.surroundings.may_begin(begun):
                return None
        elif call.may_have_begun:
            detail = "its worker vanished, and without a result backend nobody knows whether it had begun"
            return self._dead_letter(str(attempt.queue), call.message, "lost", detail)
        return self._run(task, call, arguments)

    def _beginning(self, call: Call) -> Record | None:
        about = {
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "worker": self._worker,
            "started": time.time(),
            "retries": call.attempt.retries,
        }
        return record(call.message, "STARTED", about, run=self._run_name)

    def _run(self, task: Task[..., Any], call: Call, arguments: Arguments) -> Outcome:
        attempt, (args, kwargs, embed) = call.attempt, arguments
        token = current.set(attempt)
        log.bind_task(attempt.id, attempt.task, attempt.number)
        started = time.perf_counter()
        try:
            logger.debug("task_started")
            if self._keeps and task.acks_late and (embed is not NOTHING_FOLLOWS or attempt.root_id not in (None, attempt.id)):
                begun = self._beginning(call)
                if begun is not None:
                    self.surroundings.begins(begun)
            self.surroundings.agree(self._terms(task, call))
            value = task(*args, **kwargs)
            self.surroundings.release()
            plain = plain_result(value)
            seconds = time.perf_counter() - started
            end = self._end(task, call, "SUCCESS", plain, seconds=seconds)
            outcome = SUCCEEDED if end is None else Outcome("succeeded", record=end)
            if embed is not NOTHING_FOLLOWS:
                outcome = ended_well(outcome, call.message, embed, plain, self._route)
        except BaseException as error:  # noqa: BLE001  # the border to the application: whatever it raises is the task's failure
            terminated = self.surroundings.release()
            error = error.with_traceback(_below_ours(error.__traceback__))
            seconds = time.perf_counter() - started
            return self._revoked(task, call, seconds) if terminated else self._raised(task, call, error, seconds)
        else:
            logger.info("task_succeeded", seconds=round(seconds, 6))
            return outcome
        finally:
            log.unbind_task()
            current.reset(token)

    def _terms(self, task: Task[..., Any], call: Call) -> Terms:
        """The call's own limits go before the task's, and those before the worker's."""
        settings, policy, retries = self._settings, task.retry_policy, call.attempt.retries
        hard = call.time_limit or task.time_limit or settings.time_limit
        soft = call.soft_time_limit or task.soft_time_limit or settings.soft_time_limit
        now = time.monotonic()
        again_after = policy.delay(retries) if hard and task.on_timeout == "retry" and policy.allows(retries) else -1.0
        return Terms(
            call.attempt.id,
            now + soft if soft else 0.0,
            now + hard if hard else 0.0,
            again_after,
            task.on_worker_lost == "fail",
            not task.acks_late,
        )

    def _raised(self, task: Task[..., Any], call: Call, error: BaseException, seconds: float) -> Outcome:
        """The task ended with an exception: what it asks for, or a retry, or its failure."""
        attempt, queue = call.attempt, str(call.attempt.queue)
        cause = error.exc if isinstance(error, Retry) and error.exc is not None else error
        # It has ended without taking its worker down: whatever it was suspected of, it is cleared.
        message = call.message.without(ALONE, RETURNS, SUSPECTED)
        message = with_attempt(message, self._worker, time.time() - seconds, seconds, repr(cause))
        if (asked := self._asked(task, call, error, message, seconds)) is not None:
            return asked
        delay = self._retry_delay(task, call, error)
        if delay is not None:
            logger.warning("task_retried", error=repr(cause), retries=attempt.retries + 1, retry_in=round(delay, 3))
            again_at = time.time() + delay
            eta = datetime.fromtimestamp(again_at, UTC).isoformat() if delay > 0 else None
            copy = message.with_headers(retries=attempt.retries + 1, eta=eta, **{SENT: again_at})
            return Outcome("retried", (Publication(queue, copy, delay),))
        logger.error("task_failed", error=repr(cause), seconds=round(seconds, 6), exc_info=cause)
        raised = error if cause.__traceback__ is None else cause
        text = "".join(traceback.format_exception(raised))[-TRACEBACK_LIMIT:]
        described = failure(type(cause).__qualname__, [_plain(arg) for arg in cause.args], type(cause).__module__)
        end = self._end(task, call, "FAILURE", described, text, message=message)
        if attempt.retries or isinstance(error, Retry) or self._wants_retry(task, error):
            detail = f"{attempt.retries} retries, and then {cause!r}"
            return self._dead_letter(queue, message, "retries exhausted", detail, described=described, end=end, text=text)
        return ended_badly(Outcome("failed", record=end), message, described, self._route, traceback=text)

    def _asked(
        self, task: Task[..., Any], call: Call, error: BaseException, message: Message, seconds: float
    ) -> Outcome | None:
        """What the task says itself of how it ends; None where it just failed."""
        queue = str(call.attempt.queue)
        match error:
            case Ignore():
                logger.info("task_ignored", seconds=round(seconds, 6))
                outcome = Outcome("ignored", record=self._end(task, call, "IGNORED", None, seconds=seconds))
                return ended_well(outcome, message, read_embed(message), None, self._route)
            case Reject(requeue=True):
                logger.warning("task_rejected", reason=str(error), requeue=True, seconds=round(seconds, 6))
                return again("rejected", queue, message, delay=REJECT_DELAY)
            case Reject():
                return self._dead_letter(queue, message, "rejected", str(error) or "the task rejected it")
            case Terminated():
                return self._revoked(task, call, seconds)
        return None

    def _retry_delay(self, task: Task[..., Any], call: Call, error: BaseException) -> float | None:
        """After how many seconds the task is tried again; None if it is not."""
        policy, retries = task.retry_policy, call.attempt.retries
        if isinstance(error, Retry):
            if not policy.allows(retries, error.max_retries):
                return None
            delay = policy.delay(retries) if error.countdown is None else error.countdown
        elif policy.allows(retries) and self._wants_retry(task, error):
            delay = policy.delay(retries)
        else:
            return None
        return min(delay, LONGEST_DELAY) if math.isfinite(delay) and delay > 0 else 0.0

    def _wants_retry(self, task: Task[..., Any], error: BaseException) -> bool:
        if isinstance(error, SoftTimeLimitExceeded) and task.on_timeout == "retry":
            return True
        try:
            return task.retry_policy.wants(error)
        except Exception as broken:  # retry_on is the application's; the task has failed with its own error all the same
            logger.error("retry_on_failed", error=repr(broken), exc_info=broken)
            return False

    def _end(
        self,
        task: Task[..., Any],
        call: Call,
        status: Status,
        result: Any,
        text: str | None = None,
        *,
        message: Message | None = None,
        seconds: float = 0.0,
    ) -> Record | None:
        """The record of this end, where one is kept. A beginning that was recorded must find its end.

        ``message`` remembers the attempt that ends here; by default, it is one of so many seconds.
        """
        if not self._results or (call.ignore_result and task.acks_late):
            return None
        if message is None:
            message = with_attempt(call.message, self._worker, time.time() - seconds, seconds, status)
        return record(message, status, result, text, run=self._run_name)

    def _revoked(self, task: Task[..., Any], call: Call, seconds: float) -> Outcome:
        logger.warning("task_revoked", terminated=True)
        why = revoked("terminated")
        outcome = Outcome("revoked", record=self._end(task, call, "REVOKED", why, seconds=seconds))
        return ended_badly(outcome, call.message, why, self._route)

    def _expired(self, call: Call) -> Outcome:
        logger.warning("task_expired", task_id=call.attempt.id, task=call.attempt.task)
        keep, why = self._results and not call.ignore_result, revoked("expired")
        outcome = Outcome("revoked", record=record(call.message, "REVOKED", why) if keep else None)
        return ended_badly(outcome, call.message, why, self._route)

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

    def _dead_letter(
        self,
        queue: str,
        message: Message,
        reason: str,
        detail: str,
        *,
        described: dict[str, Any] | None = None,
        end: Record | None = None,
        text: str | None = None,
    ) -> Outcome:
        task_id, task = message.headers.get("id"), message.headers.get("task")
        logger.error("task_dead_lettered", task_id=task_id, task=task, queue=queue, reason=reason, detail=detail)
        if described is None:
            described = failure("DeadLettered", [f"{reason}: {detail}"])
            end = record(message, "FAILURE", described) if self._results else None
        outcome = dead_letter(queue, message, reason, detail, worker=self._worker, end=end, traceback=text)
        return ended_badly(outcome, message, described, self._route, traceback=text)


def _waited(message: Message, now: float) -> float:
    """How long the message could have run before, in seconds; below 0 where it does not say since when."""
    sent = message.headers.get(SENT)
    return max(0.0, now - sent) if isinstance(sent, int | float) and math.isfinite(sent) else -1.0


def _below_ours(trace: TracebackType | None) -> TracebackType | None:
    """The user's part of a traceback: it begins below our call of the task."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, Task.__module__):
        trace = trace.tb_next
    return trace


def _plain(value: Any) -> Any:
    try:
        return plain_result(value)
    except ArgumentRefused:
        return repr(value)
