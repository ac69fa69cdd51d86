"""Events: what happens to tasks here, told to whoever listens, in Celery's format.

::

    loop ──► tap (bounded) ──► chronicle, in the thread of remote control ──► exchange celeryev
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

from taskq import log
from taskq.broker.pidbox import Clock
from taskq.message import DEAD_DETAIL, DEAD_REASON, DEAD_TRACEBACK, HISTORY, Message
from taskq.version import version
from taskq.workers.outcome import Outcome
from taskq.workers.portrait import Painter, cut, text_in
from taskq.workers.tap import Happening

logger = log.get_logger("taskq.remote")

#: How often worker-heartbeat is sent, in seconds. Celery's monitors hold a worker for dead after twice that.
HEARTBEAT = 2.0


class Chronicle:
    """Turns happenings into events of the worker ``node``."""

    def __init__(self, node: str, painter: Painter, clock: Clock) -> None:
        self._node = node
        self._painter = painter
        self._clock = clock
        #: How many events could not be told.
        self.failed = 0
        self._software = {"sw_ident": "taskq", "sw_ver": version(), "sw_sys": platform.system()}

    def worker(self, kind: str, *, active: int, processed: int) -> dict[str, Any]:
        """An event about the worker itself: online, heartbeat, offline."""
        load = [round(average, 2) for average in os.getloadavg()]
        about = {"freq": HEARTBEAT, "active": active, "processed": processed, "loadavg": load, **self._software}
        return self._event(f"worker-{kind}", time.time(), about)

    def tasks(self, happenings: Sequence[Happening]) -> list[dict[str, Any]]:
        """The events about tasks, in their order. One that cannot be told is left out, and counted in ``failed``."""
        events: list[dict[str, Any]] = []
        for happening in happenings:
            try:
                events += self._told(happening)
            except Exception as error:  # whatever a message or an outcome holds, what happened to the others is to be told
                self.failed += 1
                logger.debug("event_failed", error=repr(error), exc_info=error)
        return events

    def _told(self, happening: Happening) -> list[dict[str, Any]]:
        message = self._painter.message(happening.held)
        task_id = text_in(message, "id")
        if task_id is None:
            # Celery's monitors know tasks by their id alone.
            return []
        about = {"uuid": task_id, "name": text_in(message, "task")}
        if happening.outcome is None:
            kind, more = ("started", {}) if happening.begun else ("received", self._received(happening, message))
            return [self._event(f"task-{kind}", happening.at, {**about, **more})]
        if (end := self._end(happening, happening.outcome)) is None:
            return []
        begun = happening.seconds and not happening.told
        started = [self._event("task-started", happening.at - happening.seconds, about)] if begun else []
        return [*started, self._event(f"task-{end[0]}", happening.at, {**about, **end[1]})]

    def _event(self, kind: str, at: float, about: dict[str, Any]) -> dict[str, Any]:
        zone = time.altzone if time.localtime().tm_isdst else time.timezone
        head = {"type": kind, "timestamp": at, "hostname": self._node, "pid": os.getpid()}
        return {**head, "utcoffset": zone // 3600, "clock": self._clock.forward(), **about}

    def _received(self, happening: Happening, message: Message) -> dict[str, Any]:
        args, kwargs = self._painter.arguments(message)
        named = {name: text_in(message, name) for name in ("root_id", "parent_id", "eta", "expires")}
        return {**named, "args": args, "kwargs": kwargs, "retries": message.count("retries"), "queue": happening.held.queue}

    def _end(self, happening: Happening, outcome: Outcome) -> tuple[str, dict[str, Any]] | None:
        """The kind of event and what it says; None for an end that is none to Celery, as of what is only passed on."""
        match outcome.event:
            case "succeeded":
                result = self._painter.result(outcome.record) if outcome.record is not None else None
                end = ("succeeded", {"result": result, "runtime": happening.seconds})
            case "failed":
                end = ("failed", _failure(outcome))
            case "retried" | "crashed":
                end = ("retried", {"exception": _last_error(outcome), "traceback": None})
            case "rejected":
                end = ("rejected", {"requeue": True})
            case "revoked":
                why = _failure(outcome)["exception"]
                end = ("revoked", {"terminated": "terminated" in why, "signum": None, "expired": "expired" in why})
            case "dead-lettered":
                end = _dead(outcome.publish[0].message)
            case _:
                return None
        return end


def _dead(letter: Message) -> tuple[str, dict[str, Any]]:
    """A task that rejects its message says so on purpose; the other reasons are failures."""
    reason, detail = letter.headers.get(DEAD_REASON), letter.headers.get(DEAD_DETAIL)
    if reason == "rejected":
        return "rejected", {"requeue": False}
    why = f"{reason}: {detail}"
    return "failed", {"exception": cut(f"DeadLettered({why!r})"), "traceback": letter.headers.get(DEAD_TRACEBACK)}


def _failure(outcome: Outcome) -> dict[str, Any]:
    """The exception in the outcome's record, whether that is kept or not."""
    record = outcome.record or outcome.unkept
    if record is None:
        return {"exception": "unknown: its message has no id", "traceback": None}
    meta = record.described()
    error = meta.get("result") or {}
    arguments = ", ".join(map(repr, error.get("exc_message") or ()))
    return {"exception": cut(f"{error.get('exc_type')}({arguments})"), "traceback": meta.get("traceback")}


def _last_error(outcome: Outcome) -> str:
    """How the last attempt ended, as the message that goes out again remembers it."""
    history = outcome.publish[0].message.headers.get(HISTORY) if outcome.publish else None
    last = history[-1] if isinstance(history, list) and history else None
    return cut(str(last.get("ended"))) if isinstance(last, dict) else ""
