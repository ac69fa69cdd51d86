"""An outcome: what became of a delivery, as a value. ``settle`` carries it out; nothing else does.

There is one way for a message to live on: a copy is published, and the message is acked once the copy is confirmed. So a retry,
a message that is given back and a dead letter are all settled as a success is.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Literal

import msgspec

from taskq.attempt import past as attempts
from taskq.decoding import decoded
from taskq.describe import LONGEST_IN_HEADERS, args_of, bounded, module_of, name_of, repr_of, shortened, text_of
from taskq.launch import Member
from taskq.message import (
    ALONE,
    DEAD_AT,
    DEAD_DETAIL,
    DEAD_FIRST,
    DEAD_QUEUE,
    DEAD_REASON,
    DEAD_SIGNAL,
    DEAD_TRACEBACK,
    DEAD_WORKER,
    DELIVERIES,
    HISTORY,
    SENT,
    Message,
    Publication,
    dead_letter_queue,
)
from taskq.results.store import Barrier, Record, Status
from taskq.serialization import plain_result

#: How many attempts a message remembers, the latest.
LONGEST_HISTORY = 20
#: How long what ended an attempt is in this memory, in bytes.
LONGEST_END = 1_000
#: The arguments of an exception are kept as what they are up to so many bytes of JSON, and so many of them. Errbacks are told
#: of them in a header.
LONGEST_ARGUMENT = 4_096
MOST_ARGUMENTS = 8
#: Stands in the records of a task that runs at most once.
AT_MOST_ONCE = "at_most_once"

Event = Literal[
    "succeeded",
    "failed",
    "retried",
    "rejected",
    "ignored",
    "revoked",
    "delayed",
    "dead-lettered",
    "crashed",
    "given back",
    "begun",
    "asked",
    "dropped",
    "gathered",
]


class Flow(msgspec.Struct, frozen=True, array_like=True):
    """What a workflow makes of an outcome.

    Chords that begin with what is published, ends of tasks that will never run, and members of chords that have ended.
    """

    barriers: tuple[Barrier, ...] = ()
    records: tuple[Record, ...] = ()
    members: tuple[Member, ...] = ()


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of a delivery: what to publish next and what to record, before it is acked.

    ``unkept`` is the record of a bad end that is not to be kept: events tell of it, and that is all.
    """

    event: Event
    publish: tuple[Publication, ...] = ()
    record: Record | None = None
    flow: Flow | None = None
    unkept: Record | None = None


SUCCEEDED = Outcome("succeeded")


def record(
    message: Message, status: Status, result: Any, traceback: str | None = None, *, run: str | None = None
) -> Record | None:
    """What is kept of a task in Celery's result format; ``result`` must be plain JSON values already.

    None for a message that has no id to keep it under. ``run`` names the run of a task that runs at most once: it must not run
    again, whatever becomes of its message.
    """
    headers = message.headers
    task_id = headers.get("id") or message.correlation_id
    if not isinstance(task_id, str):
        return None
    meta = {
        "status": status,
        "result": result,
        "traceback": traceback,
        "children": [],
        "date_done": _date(int(time.time())),
        "task_id": task_id,
        "parent_id": headers.get("parent_id"),
        "root_id": headers.get("root_id"),
        "attempt": (attempt := message.attempt),
    }
    if turn := message.round:
        meta["round"] = turn
    if isinstance(group := headers.get("group"), str):
        meta["group_id"] = group
    if history := attempts(headers.get(HISTORY)):
        meta["attempts"] = history
    if run is not None:
        meta[AT_MOST_ONCE] = True
        meta["run"] = run
    lasting = run is not None and status == "STARTED"
    return Record(task_id, status, msgspec.json.encode(meta), attempt, lasting, message.reply_to, turn, run)


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    """The moment, in seconds since the epoch, as Celery's results write it. Thousands of tasks end in the same second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))


class _Meta(msgspec.Struct):
    at_most_once: bool = False


_META: msgspec.json.Decoder[_Meta] = msgspec.json.Decoder(_Meta)


def runs_at_most_once(kept: Record) -> bool:
    """Whether the record is of a task that must not run again. Raises ``MessageError`` for one that can't be read."""
    return decoded(_META.decode, kept.meta, "the record of a task").at_most_once


def failure(exc_type: str, args: list[Any], exc_module: str = "taskq.errors") -> dict[str, Any]:
    """An exception as Celery's results describe it."""
    return {"exc_type": exc_type, "exc_message": args, "exc_module": exc_module}


def described(error: BaseException) -> dict[str, Any]:
    """An exception as Celery's results describe it, whatever it is; where its arguments do not tell its text, with that too.

    Celery's clients pass over ``exc_text``.
    """
    kind, args, text = type(error), args_of(error), text_of(error)
    told = [_argument(arg) for arg in args[:MOST_ARGUMENTS]]
    if len(args) > MOST_ARGUMENTS:
        told.append(f"… and {len(args) - MOST_ARGUMENTS} more")
    about = failure(name_of(kind), told, module_of(kind))
    return about if text == text_of(BaseException(*args)) else {**about, "exc_text": text}


def _argument(value: Any) -> Any:
    try:
        plain = plain_result(value)
        if len(msgspec.json.encode(plain)) <= LONGEST_ARGUMENT:
            return plain
    except BaseException:  # noqa: BLE001, S110  # it is the application's value, and may be anything
        pass
    return text_of(value, LONGEST_ARGUMENT) if isinstance(value, str) else repr_of(value, LONGEST_ARGUMENT)


def revoked(why: str) -> dict[str, Any]:
    """What Celery records of a task that was revoked, or has expired."""
    return failure("TaskRevokedError", [why], "celery.exceptions")


def ended(
    event: Event, end: Record | None, message: Message, status: Status, described: dict[str, Any], traceback: str | None = None
) -> Outcome:
    """A bad end with its record, or where none is kept (``end`` is None) with one to be told of."""
    return Outcome(event, record=end, unkept=record(message, status, described, traceback) if end is None else None)


def past(message: Message) -> list[dict[str, Any]]:
    """The attempts that the message remembers, oldest first."""
    return [msgspec.to_builtins(attempt) for attempt in attempts(message.headers.get(HISTORY))]


def with_attempt(message: Message, worker: str, started: float, seconds: float, ended: str) -> Message:
    """A copy that remembers this attempt too; ``started`` is in epoch seconds."""
    attempt = {"worker": worker, "started": started, "seconds": round(seconds, 6), "ended": bounded(ended, LONGEST_END)}
    return msgspec.structs.replace(message, headers={**message.headers, HISTORY: [*past(message), attempt][-LONGEST_HISTORY:]})


def again(event: Event, queue: str, message: Message, *, delay: float = 0.0, first: bool = False, **headers: Any) -> Outcome:
    """The message goes back to its queue with these headers; what it says of its crashes and attempts goes along."""
    # What is given back has been waiting all the time.
    waits = {} if event == "given back" else {SENT: time.time() + delay}
    copy = message.with_headers(**{DELIVERIES: message.count(DELIVERIES) + 1}, **waits, **headers)
    return Outcome(event, (Publication(queue, copy, delay, first),))


def given_back(queue: str, message: Message, **headers: Any) -> Outcome:
    """The message goes back to the head of its queue, at no cost: nothing that is counted against it has happened."""
    return again("given back", queue, message, first=True, **headers)


def dead_letter(
    queue: str,
    message: Message,
    reason: str,
    detail: str,
    *,
    worker: str,
    end: Record | None,
    traceback: str | None = None,
    signal: str | None = None,
) -> Outcome:
    """The message goes to the queue's dead letters with the reason, and its task ends with ``end``, or unrecorded."""
    now = time.time()
    attempts = past(message)
    headers = {
        DEAD_REASON: reason,
        DEAD_DETAIL: bounded(detail),
        DEAD_QUEUE: queue,
        DEAD_AT: now,
        DEAD_FIRST: attempts[0]["started"] if attempts else now,
        DEAD_WORKER: worker,
        DEAD_TRACEBACK: traceback and shortened(traceback, LONGEST_IN_HEADERS),
        DEAD_SIGNAL: signal,
    }
    kept = {name: value for name, value in message.headers.items() if name != ALONE}
    # Priority and delay belong to the queue it came from; a dead-letter queue has neither.
    letter = msgspec.structs.replace(
        message, headers={**kept, **{name: value for name, value in headers.items() if value is not None}}, priority=None
    )
    return Outcome("dead-lettered", (Publication(dead_letter_queue(queue), letter),), end)
