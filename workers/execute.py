"""Execution: a delivery becomes an outcome. This is the only place that calls a task.

Pure but for the task itself: it reads the message, decides, runs, and describes what is to be done. It publishes nothing,
stores nothing and acks nothing.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic  # now: limits must not depend on what a task puts in its place
from types import TracebackType
from typing import Any

import msgspec

from taskq import log
from taskq.attempt import current
from taskq.broker.interface import Decode, Delivery
from taskq.builtin import builtins
from taskq.config import Settings
from taskq.decoding import UNREADABLE
from taskq.describe import repr_of, text_of, traceback_of
from taskq.errors import (
    ArgumentRefused,
    Ignore,
    MessageError,
    Reject,
    ResultTooLarge,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
)
from taskq.message import ALONE, RETURNS, SENT, SUSPECTED, TICK_COPY, UNKNOWN_SINCE, Message, Publication, undecodable
from taskq.results.store import Record, Status
from taskq.retry import RetryPolicy, sound
from taskq.serialization import plain_result
from taskq.step import NOTHING_FOLLOWS, Embed
from taskq.task import Task, router
from taskq.workers.call import Arguments, Call, read_arguments, read_call, with_failure
from taskq.workers.dead_letters import DeadLetters
from taskq.workers.ending import ended_badly, ended_well, passes_on, read_embed
from taskq.workers.note import Terms
from taskq.workers.outcome import SUCCEEDED, Outcome, again, described, ended, record, revoked, with_attempt
from taskq.workers.surroundings import Alone, Surroundings
from taskq.workers.verify import FOLLOW_UP_REFUSED, Verifier

#: An ETA this near counts as reached: clocks of different machines agree no better.
ETA_TOLERANCE = 0.1
#: What is due later than this is looked at again then, in seconds: brokers hold a message for some years at most.
LONGEST_DELAY = 30 * 86_400.0
#: After how many seconds a message that its task has rejected to the queue comes again.
REJECT_DELAY = 1.0

logger = log.get_logger("taskq.task")


def task_names(tasks: Mapping[str, Task[..., Any]]) -> tuple[str, ...]:
    """The application's tasks in the order in which children number them."""
    return tuple(sorted(tasks))


class Executor:
    """Runs deliveries in this process, one at a time. ``faults`` counts those that failed as nobody has foreseen."""

    def __init__(self, tasks: Mapping[str, Task[..., Any]], settings: Settings, read: Decode, worker: str) -> None:
        self.surroundings: Surroundings = Alone()
        self.names = task_names(tasks)
        self.faults = 0
        self._tasks = {**builtins(tasks), **tasks}
        self._settings = settings
        self._read = read
        self._worker = worker
        self._route = router(tasks, settings.default_queue)
        self._results = settings.backend_url is not None
        self._keeps = settings.keeps_results
        self._letters = DeadLetters(settings, worker, self._route)
        self._verify = Verifier(settings, self._letters)

    def __call__(self, delivery: Delivery) -> Outcome | None:
        """Run the delivery's task, or say why not; None if it must not even begin here.

        Raises nothing but what ends this process: ``OSError`` where its pipe is gone, and ``KeyboardInterrupt``.
        """
        message: Message | None = None
        try:
            message = self._read(delivery.properties, delivery.body)
            outcome = self._decide(delivery, message)
        except MessageError as error:
            message = message or undecodable(delivery.body)
            outcome = self._letters.compose(delivery.queue, message, "undecodable", str(error))
        except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  # a fault of ours must cost this task alone, and no process
            self.surroundings.release()
            message = message or undecodable(delivery.body)
            outcome = self._broken(delivery.queue, message, error)
        if outcome is None or not (outcome.publish or outcome.flow):
            return outcome
        return self._verify(delivery.queue, message, outcome)

    def unreportable(self, delivery: Delivery, error: MessageError) -> Outcome:
        """What is to be reported of a delivery whose outcome cannot be, for this reason."""
        message = undecodable(delivery.body)
        with suppress(MessageError):
            message = self._read(delivery.properties, delivery.body)
        return self._verify(delivery.queue, message, self._broken(delivery.queue, message, error))

    def _broken(self, queue: str, message: Message, error: BaseException) -> Outcome:
        self.faults += 1
        logger.error("execution_failed", task_id=message.headers.get("id"), queue=queue, exc_info=error)
        return self._letters.compose(queue, message, "internal error", f"it could not be handled: {repr_of(error)}")

    def _decide(self, delivery: Delivery, message: Message) -> Outcome | None:
        """Raises ``MessageError`` for a message that makes no sense."""
        task = self._tasks.get(str(message.headers.get("task")))
        call = read_call(message, delivery, task.retry_policy if task is not None else RetryPolicy())
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
        arguments = with_failure(read_arguments(message, self._keeps), message, task)
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
            begun = self._beginning(task, call)
            if begun is None or not self.surroundings.may_begin(begun):
                return None
        elif call.may_have_begun:
            detail = "its worker vanished, and without a result backend nobody knows whether it had begun"
            return self._letters.compose(str(attempt.queue), call.message, "lost", detail)
        return self._run(task, call, arguments)

    def _beginning(self, task: Task[..., Any], call: Call) -> Record | None:
        about = {"pid": os.getpid(), "hostname": socket.gethostname(), "worker": self._worker}
        about |= {"started": time.time(), "retries": call.attempt.retries}
        return record(call.message, "STARTED", about, run=self._name_of_run(task))

    def _name_of_run(self, task: Task[..., Any]) -> str | None:
        """The name of a run that must be the only one: its worker's, which sees to it that it runs a task once at a time."""
        return None if task.acks_late else self._worker

    def _run(self, task: Task[..., Any], call: Call, arguments: Arguments) -> Outcome:
        attempt, (args, kwargs, embed) = call.attempt, arguments
        token = current.set(attempt)
        log.bind_task(attempt.id, attempt.task, attempt.number)
        started = time.perf_counter()
        try:
            logger.debug("task_started")
            if self._keeps and task.acks_late and (embed is not NOTHING_FOLLOWS or attempt.root_id not in (None, attempt.id)):
                begun = self._beginning(task, call)
                if begun is not None:
                    self.surroundings.begins(begun)
            try:
                self.surroundings.agree(self._terms(task, call))
                value = task(*args, **kwargs)
                self.surroundings.release()
            except BaseException as error:  # noqa: BLE001  # the border to the application: whatever it raises is the task's failure
                terminated = self.surroundings.release()
                error = BaseException.with_traceback(error, _below_ours(error.__traceback__))
                seconds = time.perf_counter() - started
                return self._revoked(task, call, seconds) if terminated else self._raised(task, call, error, seconds)
            return self._returned(task, call, embed, value, time.perf_counter() - started)
        finally:
            log.unbind_task()
            current.reset(token)

    def _returned(self, task: Task[..., Any], call: Call, embed: Embed, value: Any, seconds: float) -> Outcome:
        """The task has returned this. Nothing from here on may run it again: it has succeeded."""
        outcome = SUCCEEDED
        if embed is not NOTHING_FOLLOWS or self._records(task, call):
            plain = result = None
            if not call.ignore_result or passes_on(embed):
                try:
                    plain, result = self._encoded(value)
                except (ArgumentRefused, ResultTooLarge) as error:
                    return self._failed(task, call, error.with_traceback(None), call.message, seconds)
            if (end := self._end(task, call, "SUCCESS", result, seconds=seconds)) is not None:
                outcome = Outcome("succeeded", record=end)
            if embed is not NOTHING_FOLLOWS:
                outcome = self._go_on(outcome, call.message, embed, plain, str(call.attempt.queue))
        logger.info("task_succeeded", seconds=round(seconds, 6))
        return outcome

    def _encoded(self, value: Any) -> tuple[Any, msgspec.Raw]:
        """The value as JSON values, and as JSON; raises ``ArgumentRefused`` and ``ResultTooLarge``."""
        plain = plain_result(value)
        try:
            result = msgspec.json.encode(plain)
        except UNREADABLE as error:  # a number of more digits than Python converts
            raise ArgumentRefused(f"the return value cannot be written as JSON: {text_of(error)}") from None
        if len(result) > self._settings.max_result_bytes:
            raise ResultTooLarge(
                f"the return value is {len(result)} bytes of JSON, over max_result_bytes={self._settings.max_result_bytes}; "
                "store the data elsewhere and return where it is"
            )
        return plain, msgspec.Raw(result)

    def _go_on(self, outcome: Outcome, message: Message, embed: Embed, plain: Any, queue: str) -> Outcome:
        """What the workflow makes of the end; where it can make nothing of it, the task does not run again for that."""
        try:
            return ended_well(outcome, message, embed, plain, self._route)
        except Exception as error:  # noqa: BLE001  # messages say what follows, and can say anything
            detail = f"a follow-up cannot be sent: {text_of(error)}"
            return self._letters.compose(queue, message, FOLLOW_UP_REFUSED, detail)

    def _terms(self, task: Task[..., Any], call: Call) -> Terms:
        """The call's own limits go before the task's, and those before the worker's."""
        settings, policy, retries = self._settings, task.retry_policy, call.attempt.retries
        hard = call.time_limit or task.time_limit or settings.time_limit
        soft = call.soft_time_limit or task.soft_time_limit or settings.soft_time_limit
        now = monotonic()
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
        error = sound(error)
        cause = _cause(error)
        # It has ended without taking its worker down: whatever it was suspected of, it is cleared.
        message = call.message.without(ALONE, RETURNS, SUSPECTED)
        message = with_attempt(message, self._worker, time.time() - seconds, seconds, repr_of(cause))
        if (asked := self._asked(task, call, error, message, seconds)) is not None:
            return asked
        delay = self._retry_delay(task, call, error)
        if delay is not None:
            logger.warning("task_retried", error=repr_of(cause), retries=attempt.retries + 1, retry_in=round(delay, 3))
            again_at = time.time() + delay
            eta = datetime.fromtimestamp(again_at, UTC).isoformat() if delay > 0 else None
            copy = message.with_headers(retries=attempt.retries + 1, eta=eta, **{SENT: again_at})
            # A delay that no broker holds is split: the message says when it is due, and comes by before.
            later = Publication(queue, copy, min(delay, LONGEST_DELAY))
            return Outcome("retried", (later,), self._between(task, call, error, message))
        if not (attempt.retries or isinstance(error, Retry) or self._wants_retry(task, error)):
            return self._failed(task, call, cause, message, seconds)
        logger.error("task_failed", error=repr_of(cause), seconds=round(seconds, 6), exc_info=cause)
        about, text = described(cause), _trace(error, cause)
        end = self._end(task, call, "FAILURE", about, text, message=message)
        detail = f"{attempt.retries} retries, and then {repr_of(cause)}"
        return self._letters.compose(queue, message, "retries exhausted", detail, described=about, end=end, text=text)

    def _between(self, task: Task[..., Any], call: Call, error: BaseException, message: Message) -> Record | None:
        """What is recorded until the next attempt; the beginning of a task that runs at most once has to stand."""
        if not self._keeps or call.ignore_result or not task.acks_late:
            return None
        cause = _cause(error)
        return record(message, "RETRY", described(cause), _trace(error, cause))

    def _failed(self, task: Task[..., Any], call: Call, error: BaseException, message: Message, seconds: float) -> Outcome:
        """The task has failed, and no policy says that another attempt is worth it."""
        logger.error("task_failed", error=repr_of(error), seconds=round(seconds, 6), exc_info=error)
        about, text = described(error), traceback_of(error)
        end = self._end(task, call, "FAILURE", about, text, message=message)
        outcome = ended("failed", end, message, "FAILURE", about, text)
        return ended_badly(outcome, message, about, self._route, traceback=text)

    def _asked(
        self, task: Task[..., Any], call: Call, error: BaseException, message: Message, seconds: float
    ) -> Outcome | None:
        """What the task says itself of how it ends; None where it just failed."""
        queue = str(call.attempt.queue)
        match error:
            case Ignore():
                logger.info("task_ignored", seconds=round(seconds, 6))
                outcome = Outcome("ignored", record=self._end(task, call, "IGNORED", None, seconds=seconds))
                return self._go_on(outcome, message, read_embed(message), None, queue)
            case Reject(requeue=True):
                logger.warning("task_rejected", reason=text_of(error), requeue=True, seconds=round(seconds, 6))
                return again("rejected", queue, message, delay=REJECT_DELAY)
            case Reject():
                return self._letters.compose(queue, message, "rejected", text_of(error) or "the task rejected it")
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
        return delay if math.isfinite(delay) and delay > 0 else 0.0

    def _wants_retry(self, task: Task[..., Any], error: BaseException) -> bool:
        if isinstance(error, SoftTimeLimitExceeded) and task.on_timeout == "retry":
            return True
        try:
            return task.retry_policy.wants(error)
        except BaseException as broken:  # retry_on is the application's; the task has failed with its own error all the same
            logger.error("retry_on_failed", error=repr_of(broken), exc_info=broken)
            return False

    def _records(self, task: Task[..., Any], call: Call) -> bool:
        return self._results and not (call.ignore_result and task.acks_late)

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
        if not self._records(task, call):
            return None
        if message is None:
            message = with_attempt(call.message, self._worker, time.time() - seconds, seconds, status)
        return record(message, status, result, text, run=self._name_of_run(task))

    def _revoked(self, task: Task[..., Any], call: Call, seconds: float) -> Outcome:
        logger.warning("task_revoked", terminated=True)
        why = revoked("terminated")
        outcome = ended("revoked", self._end(task, call, "REVOKED", why, seconds=seconds), call.message, "REVOKED", why)
        return ended_badly(outcome, call.message, why, self._route)

    def _expired(self, call: Call) -> Outcome:
        logger.warning("task_expired", task_id=call.attempt.id, task=call.attempt.task)
        keep, why = self._results and not call.ignore_result, revoked("expired")
        outcome = ended("revoked", record(call.message, "REVOKED", why) if keep else None, call.message, "REVOKED", why)
        return ended_badly(outcome, call.message, why, self._route)

    def _unknown(self, call: Call, queue: str, now: float) -> Outcome:
        """Another worker may know the task, or the next deployment: give it back for a while, but neither drop it nor spin."""
        since, ttl = min(now, call.message.moment(UNKNOWN_SINCE) or now), self._settings.unknown_task_ttl
        if now - since >= ttl:
            detail = f"no worker of queue {queue!r} knew task {call.attempt.task!r} for {ttl:g} s"
            return self._letters.compose(queue, call.message, "unknown task", detail)
        if UNKNOWN_SINCE not in call.message.headers:
            logger.warning("task_unknown", task_id=call.attempt.id, task=call.attempt.task, queue=queue, dead_letter_after=ttl)
        delay = min(5.0, max(0.2, ttl / 10), max(0.2, since + ttl - now))
        return Outcome("delayed", (Publication(queue, call.message.with_headers(tq_unknown_since=since), delay),))


def _waited(message: Message, now: float) -> float:
    """How long the message could have run before, in seconds; below 0 where it does not say since when."""
    sent = message.moment(SENT)
    return max(0.0, now - sent) if sent is not None else -1.0


def _below_ours(trace: TracebackType | None) -> TracebackType | None:
    """The user's part of a traceback: it begins below our call of the task."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, Task.__module__):
        trace = trace.tb_next
    return trace


def _cause(error: BaseException) -> BaseException:
    """What went wrong, where a task asks for a retry because of it."""
    return error.exc if isinstance(error, Retry) and error.exc is not None else error


def _trace(error: BaseException, cause: BaseException) -> str:
    """The traceback; a cause that was never raised has none of its own."""
    return traceback_of(error if cause.__traceback__ is None else cause)
