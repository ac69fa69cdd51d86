"""Dead letters as values: what one says, which ones are meant, and the message that a replay sends again.

Pure, and never raises on what a message says: a letter may be anybody's, and whatever else is wrong with it, it must be
possible to look at it and to be rid of it. What reads and moves letters at the broker is ``taskq.graveyard``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec

from taskq import checks
from taskq.errors import ConfigurationError, MessageError, WrongType
from taskq.message import (
    ALONE,
    ATTEMPTS,
    CRASHES,
    DEAD_AT,
    DEAD_DETAIL,
    DEAD_FIRST,
    DEAD_PREFIX,
    DEAD_REASON,
    DEAD_SIGNAL,
    DEAD_TRACEBACK,
    DEAD_WORKER,
    DELIVERIES,
    SENT,
    SUSPECTED,
    UNKNOWN_SINCE,
    Message,
)
from taskq.serialization import decode

#: Why letters are dead, as far as taskq's workers and RabbitMQ's delivery limit say so.
REASONS = (
    "crashed",
    "memory limit",
    "time limit",
    "worker lost",
    "lost",
    "retries exhausted",
    "rejected",
    "undecodable",
    "unknown task",
    "follow-up refused",
    "internal error",
    "delivery limit",
)
#: The reason of a letter that gives none.
UNKNOWN = "unknown"
#: What a replay starts anew.
_COUNTERS = frozenset({CRASHES, SUSPECTED, ALONE, DELIVERIES, UNKNOWN_SINCE})


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that no worker will run any more, and why.

    ``queue`` is the queue it was in before. ``retries`` counts how often the task raised, ``crashes`` how often the process
    that ran it died, ``deliveries`` how often the message was handed out as far as taskq has counted. ``first_at`` is its first
    failure and ``last_at`` its last. None stands for what the letter does not say.
    """

    id: str | None
    task: str | None
    queue: str
    reason: str
    detail: str | None
    retries: int
    crashes: int
    deliveries: int
    first_at: datetime | None
    last_at: datetime | None
    worker: str | None
    signal: str | None
    traceback: str | None
    message: Message

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the keyword arguments of the call; raises ``MessageError`` where the body holds none."""
        match decode(self.message.body, self.message.content_encoding):
            case [list() as args, dict() as kwargs, *_]:
                return args, kwargs
        raise MessageError("the body is not [args, kwargs, embed]")


def read(message: Message, queue: str) -> DeadLetter:
    """The dead letter of ``queue`` that this message is.

    A worker says why in headers of taskq's own; where there are none, RabbitMQ did it and says so in its header ``x-death``.
    """
    headers = message.headers
    death = _last_death(headers.get("x-death"))
    at = _moment(headers.get(DEAD_AT)) or _moment(death.get("time"))
    return DeadLetter(
        id=_text(headers.get("id")) or _text(message.correlation_id),
        task=_text(headers.get("task")),
        queue=queue,
        reason=_text(headers.get(DEAD_REASON)) or (_text(death.get("reason")) or UNKNOWN).replace("_", " "),
        detail=_text(headers.get(DEAD_DETAIL)),
        retries=message.count("retries"),
        crashes=message.crashes,
        deliveries=message.count(DELIVERIES) + 1,
        first_at=_moment(headers.get(DEAD_FIRST)) or at,
        last_at=at,
        worker=_text(headers.get(DEAD_WORKER)),
        signal=_text(headers.get(DEAD_SIGNAL)),
        traceback=_text(headers.get(DEAD_TRACEBACK)),
        message=message,
    )


def revived(message: Message, now: float) -> Message:
    """The message that a replay sends: as it was, with its history, but with all counters at the start and due at once.

    ``now`` is in seconds since the epoch: an expiry that has passed by then would make the replay pointless, and is dropped. So
    is a priority, which only what RabbitMQ dead-lettered still has: its queue need not take one from us.
    """
    kept = {name: value for name, value in message.headers.items() if not _is_of_the_past(name)}
    kept[ATTEMPTS] = message.attempt
    if SENT in kept:
        kept[SENT] = now
    if "retries" in kept:
        kept["retries"] = 0
    if "eta" in kept:
        kept["eta"] = None
    if _has_passed(kept.get("expires"), now):
        kept["expires"] = None
    return msgspec.structs.replace(message, headers=kept, priority=None)


class Selection(TypedDict, total=False):
    """Which dead letters are meant: those of whom everything that is given here is true.

    ``task`` and ``reason`` as the letter names them, ``since``: dead since that moment, ``ids``: one of these tasks; of
    an empty list, none.
    """

    task: str | None
    reason: str | None
    since: datetime | None
    ids: Collection[str] | None


class Filter(msgspec.Struct, frozen=True):
    """A selection that was checked: ``since`` has a time zone."""

    task: str | None = None
    reason: str | None = None
    since: datetime | None = None
    ids: frozenset[str] | None = None

    @classmethod
    def of(cls, selection: Selection) -> Filter:
        """The filter for these choices; raises ``ConfigurationError`` for those that make no sense."""
        if unknown := selection.keys() - Selection.__annotations__.keys():
            raise ConfigurationError(f"unknown filter {min(unknown)!r}; there are {sorted(Selection.__annotations__)}")
        task, reason, since, ids = (selection.get(name) for name in ("task", "reason", "since", "ids"))
        if since is not None and not isinstance(since, datetime):
            raise WrongType(f"since must be a datetime with a time zone, not {since!r}")
        if since is not None and since.tzinfo is None:
            raise ConfigurationError("since needs a time zone; write datetime.now(UTC) - …")
        if ids is not None and (isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable)):
            raise WrongType(f"ids is a list of task ids; write [{str(ids)!r}]")
        return cls(
            None if task is None else checks.text("task", task),
            None if reason is None else checks.text("reason", reason),
            since,
            None if ids is None else frozenset(checks.text("the id of a task", task_id) for task_id in ids),
        )

    def __bool__(self) -> bool:
        return self != Filter()

    def matches(self, letter: DeadLetter) -> bool:
        """Whether the letter is one of those that are meant. One without a date is not dead since any moment."""
        return (
            (self.task is None or letter.task == self.task)
            and (self.reason is None or letter.reason == self.reason)
            and (self.since is None or (letter.last_at is not None and letter.last_at >= self.since))
            and (self.ids is None or letter.id in self.ids)
        )


def _is_of_the_past(header: str) -> bool:
    return header in _COUNTERS or header.startswith(DEAD_PREFIX)


def _last_death(deaths: Any) -> dict[str, Any]:
    """RabbitMQ's entry for the last time it dead-lettered the message, which stands first."""
    match deaths:
        case [dict() as death, *_]:
            return death
    return {}


def _text(value: Any) -> str | None:
    """The text in a header; None where there is none, or something that is no text."""
    return value if isinstance(value, str) and value else None


def _moment(value: Any) -> datetime | None:
    """The moment that these seconds since the epoch are; None for what is no moment."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _has_passed(expires: Any, now: float) -> bool:
    """Whether the header names a moment before ``now``; one without a zone is UTC, as in Celery."""
    if not isinstance(expires, str):
        return False
    try:
        moment = datetime.fromisoformat(expires)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() <= now
    except (ValueError, OverflowError):
        return False
