"""Crashes: what becomes of a message whose process died. Pure decisions; the supervisor has the facts, ``settle`` the effects.

::

    a child dies            its task is to blame, and is counted: again at once, dead-lettered after ``max_crashes``
    a child is killed       for the task's time, memory or revocation: the reason decides
    a whole worker dies     nobody is left to count. What comes back from it is *suspected*: marked, it runs with nothing else
                            in its worker's custody. Should that worker die too, the blame is proven, and is counted.

Whatever is counted stands in the message that is published next, so that it survives whoever counted.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import Any, Literal

from taskq import log
from taskq.config import Settings
from taskq.errors import MessageError
from taskq.launch import Route
from taskq.message import ALONE, CRASHES, RETURNS, SEEN_RUNNING, SUSPECTED, Message
from taskq.results.store import Record
from taskq.workers.ending import counted, ended_badly
from taskq.workers.launcher import Death
from taskq.workers.note import NO_TERMS, Terms
from taskq.workers.outcome import (
    Outcome,
    again,
    dead_letter,
    ended,
    failure,
    given_back,
    record,
    revoked,
    runs_at_most_once,
    with_attempt,
)

#: After how many seconds a copy of a message comes again whose task has begun elsewhere, and not ended yet.
TAKEN_SECONDS = 5.0
#: After how many seconds a message that came back is judged again, where its task still ran.
SEEN_RUNNING_SECONDS = 1.0
#: From how many unexplained returns on a message is suspected without any proof: connections break more often than workers.
SUSPICIOUS = 5

Reason = Literal["time limit", "memory limit", "revoked"]

logger = log.get_logger("taskq.crashes")


class Blame(enum.Enum):
    """Whose fault a child's death is: its task's, that of one of all tasks that ran, or nobody's."""

    TASK = enum.auto()
    SHARED = enum.auto()
    NOBODY = enum.auto()


@dataclass(frozen=True, slots=True)
class Condemned:
    """Why the supervisor kills a child that runs this delivery."""

    number: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended that ran a task.

    ``seconds`` is how long the task had run, ``condemned`` why it was killed if that was the supervisor, ``stack`` where the
    task stood.
    """

    death: Death
    terms: Terms = NO_TERMS
    seconds: float = 0.0
    condemned: Condemned | None = None
    stack: str = ""

    def __str__(self) -> str:
        return f"{self.death}, after {self.seconds:.3g} s"


class Coroner:
    """Decides for one worker what becomes of messages whose process died; ``max_crashes`` is the setting."""

    def __init__(self, settings: Settings, worker: str, route: Route) -> None:
        self.max_crashes = settings.max_crashes
        self._results = settings.backend_url is not None
        self._worker = worker
        self._route = route

    def decide(self, queue: str, message: Message, end: End, blame: Blame) -> Outcome:
        """The message's task ran in a child that died."""
        match blame:
            case Blame.TASK:
                return self.child_died(queue, message, end)
            case Blame.SHARED:
                return self.zygote_died(queue, message, end)
            case Blame.NOBODY:
                return self.worker_stops(queue, message, end)

    def child_died(self, queue: str, message: Message, end: End) -> Outcome:
        """The message's task ran in a child that died, by itself or because it was condemned."""
        reason = end.condemned.reason if end.condemned else "crashed"
        message = with_attempt(message, self._worker, time.time() - end.seconds, end.seconds, _how(end))
        if reason == "revoked":
            logger.warning("task_revoked", **_about(queue, message), terminated=True, died=str(end))
            why = revoked("terminated")
            outcome = ended("revoked", self._record(message, "REVOKED", why), message, "REVOKED", why)
            return ended_badly(outcome, message, why, self._route)
        if reason == "time limit":
            return self._timed_out(queue, message, end)
        if end.terms.at_most_once:
            return self._dead(queue, message, "lost", _how(end), end, kind="WorkerLost")
        if end.terms.fail_when_lost:
            return self._dead(queue, message, "worker lost", _how(end), end, kind="WorkerLost")
        return self._count(queue, message, "memory limit" if reason == "memory limit" else "crashed", end)

    def worker_stops(self, queue: str, message: Message, end: End) -> Outcome:
        """The message's task still ran when the worker's time was up, and was killed: that is nobody's fault."""
        ended = "the worker stopped, and the task did not end within its grace"
        message = with_attempt(message, self._worker, time.time() - end.seconds, end.seconds, ended)
        if end.terms.at_most_once:
            return self._dead(queue, message, "lost", ended, end, kind="WorkerLost")
        return given_back(queue, message)

    def zygote_died(self, queue: str, message: Message, end: End) -> Outcome:
        """All children died with the process they come from: whichever task it was, nobody can tell."""
        message = with_attempt(message, self._worker, time.time() - end.seconds, end.seconds, "all children were killed")
        if end.terms.at_most_once:
            return self._dead(queue, message, "lost", "all children of its worker were killed", end, kind="WorkerLost")
        return self.came_back(queue, message, orphaned=True, begun=True)

    def revoked(self, queue: str, message: Message) -> Outcome:
        """The message's task was revoked before it ran: that is its end."""
        logger.warning("task_revoked", **_about(queue, message))
        kept, why = not message.headers.get("ignore_result"), revoked("revoked")
        outcome = ended("revoked", self._record(message, "REVOKED", why) if kept else None, message, "REVOKED", why)
        return ended_badly(outcome, message, why, self._route)

    def came_back(
        self,
        queue: str,
        message: Message,
        *,
        orphaned: bool,
        begun: bool,
        blinked: bool = False,
        record: Record | None = None,
        seen_running: float | None = None,
    ) -> Outcome:
        """The message came back although nobody gave it back: it may be that the worker that held it died.

        ``orphaned`` says that this is certain, ``begun`` that it is known to have run there when that happened, ``blinked``
        that connections have broken of late although no worker died, ``record`` is what is recorded of the task, and
        ``seen_running`` when (epoch seconds) that was last seen which sees to its end: the process in which it began, or
        whoever records that it is lost. Without any proof, the first returns are put down to the broker.
        """
        message = message.without(SEEN_RUNNING)
        if record is not None and (outcome := self._of_one_run(queue, message, record, seen_running)):
            return outcome
        proven = orphaned or begun
        if ALONE in message.headers:
            if not proven:
                return given_back(queue, message)
            message = with_attempt(message, self._worker, time.time(), 0.0, "its worker vanished with nothing else in custody")
            return self._count(queue, message, "crashed", None)
        returns = message.count(RETURNS) + (not blinked)
        if not proven and returns < SUSPICIOUS:
            return given_back(queue, message, **{RETURNS: returns})
        logger.warning("task_suspected", **_about(queue, message), begun=begun, orphaned=orphaned)
        marks = {ALONE: time.time(), SUSPECTED: message.count(SUSPECTED) + begun}
        return again("crashed", queue, message.without(RETURNS), first=True, **marks)

    def _of_one_run(self, queue: str, message: Message, record: Record, seen_running: float | None) -> Outcome | None:
        """What the record of a task that runs at most once makes of its message; None where it says nothing of that."""
        if has_begun_once(message, record):
            if seen_running is not None:
                # A copy of the message, or its worker lost the connection and not its life, or not yet: to be judged again.
                seen = message.with_headers(**{SEEN_RUNNING: seen_running})
                return again("delayed", queue, seen, delay=SEEN_RUNNING_SECONDS)
            detail = "its worker vanished after the task had begun, and it runs at most once"
            return self._dead(queue, message, "lost", detail, End(Death()), kind="WorkerLost")
        if record.is_end and _ran_at_most_once(record):
            # It has ended, and only the ack was lost; or its chord has yet to count it.
            return counted(Outcome("succeeded"), message, record, self._route)
        return None

    def _timed_out(self, queue: str, message: Message, end: End) -> Outcome:
        delay = end.terms.retry_delay
        if delay >= 0:
            retries = message.count("retries") + 1
            logger.warning("task_retried", **_about(queue, message), error=_how(end), retries=retries, retry_in=round(delay, 3))
            # The stack stands in the log alone: a retry's message must not grow with each attempt.
            return again("retried", queue, message.without(ALONE, RETURNS, SUSPECTED), delay=delay, retries=retries)
        return self._dead(queue, message, "time limit", _how(end), end, kind="TimeLimitExceeded")

    def _count(self, queue: str, message: Message, reason: str, end: End | None) -> Outcome:
        """One crash more. Runs that a worker did not survive count too, once it is known that the task was to blame."""
        crashes = message.crashes + 1
        total = crashes + message.count(SUSPECTED)
        how = _how(end) if end is not None else "the whole worker, which ran nothing else"
        message = message.with_headers(**{CRASHES: crashes})
        if total >= self.max_crashes:
            detail = f"took down {total} processes; the last one: {how}"
            return self._dead(queue, message, reason, detail, end or End(Death()))
        logger.warning("task_crashed", **_about(queue, message), crashes=total, died=how)
        return again("crashed", queue, message, first=True)

    def _dead(self, queue: str, message: Message, reason: str, detail: str, end: End, *, kind: str = "DeadLettered") -> Outcome:
        logger.error("task_dead_lettered", **_about(queue, message), reason=reason, detail=detail)
        text = detail if kind != "DeadLettered" else f"{reason}: {detail}"
        described, stack = failure(kind, [text]), end.stack or None
        kept = self._record(message, "FAILURE", described, stack)
        died_of = end.death.signal_name or None
        outcome = dead_letter(queue, message, reason, detail, worker=self._worker, end=kept, traceback=stack, signal=died_of)
        return ended_badly(outcome, message, described, self._route, traceback=stack)

    def _record(self, message: Message, status: Any, result: Any, traceback: str | None = None) -> Record | None:
        return record(message, status, result, traceback) if self._results else None


def _how(end: End) -> str:
    """The end in words, with the reason first where the supervisor had one."""
    return f"{end.condemned.detail} ({end})" if end.condemned else str(end)


def _about(queue: str, message: Message) -> dict[str, Any]:
    return {"task_id": message.headers.get("id"), "task": message.headers.get("task"), "queue": queue}


def has_begun_once(message: Message, record: Record) -> bool:
    """Whether the task that runs at most once has begun with this attempt of its message, and is not known to have ended."""
    if record.status != "STARTED" or not _ran_at_most_once(record):
        return False
    about = record.described().get("result")
    return isinstance(about, dict) and about.get("retries") == message.count("retries")


def _ran_at_most_once(record: Record) -> bool:
    try:
        return runs_at_most_once(record)
    except MessageError as error:
        # Somebody else has written it, and it says nothing.
        logger.warning("result_unreadable", task_id=record.id, error=str(error))
        return False
