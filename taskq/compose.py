"""Composing: a call becomes a message of Celery's protocol 2, and where it goes. Pure."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec

from taskq import checks
from taskq.errors import ConfigurationError
from taskq.message import SENT, Message, Publication

_RESERVED = frozenset(
    {"lang", "task", "id", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id"}
)
_HOSTNAME = socket.gethostname()


class SendOptions(TypedDict, total=False):
    """How a call is sent. The names are Celery's.

    ``countdown``: run after so many seconds; ``eta``: run at that moment; ``expires``: do not run after so many seconds or that
    moment; ``priority``: 0 to 9, 9 first; ``task_id``: the id, made up by default; ``headers``: extra message headers;
    ``time_limit`` and ``soft_time_limit``: seconds, in place of the task's and the worker's.
    """

    queue: str | None
    priority: int | None
    countdown: float | None
    eta: datetime | None
    expires: float | datetime | None
    task_id: str | None
    ignore_result: bool | None
    time_limit: float | None
    soft_time_limit: float | None
    headers: Mapping[str, Any] | None


OPTION_NAMES = frozenset(SendOptions.__annotations__)


class Family(msgspec.Struct, frozen=True):
    """Where a call comes from: the task that sends it, the first one of them all, and the queue that replies go to."""

    parent_id: str | None = None
    root_id: str | None = None
    reply_to: str | None = None


NOBODY = Family()


def compose(
    task: str,
    body: bytes,
    task_id: str,
    options: Mapping[str, Any],
    queue: str,
    family: Family,
    now: float,
    *,
    group: str | None = None,
    group_index: int | None = None,
) -> Publication:
    """The message of a call whose body is encoded already, and where it goes. ``now`` is in seconds since the epoch.

    ``options`` are those of ``SendOptions``, but for the id and the queue. Raises ``ConfigurationError``
    for what makes no sense.
    """
    delay = _delay(options, now)
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": family.root_id or task_id,
        "parent_id": family.parent_id,
        "group": group,
        "retries": 0,
        "eta": _iso(now + delay) if delay else None,
        "expires": _expires(options.get("expires"), now),
        "timelimit": list(time_limits(options)),
        "origin": origin(),
        "ignore_result": bool(options.get("ignore_result")),
        SENT: now + delay,
    }
    if group_index is not None:
        headers["group_index"] = group_index
    if extra := options.get("headers"):
        if clash := _RESERVED & extra.keys():
            raise ConfigurationError(f"the header {min(clash)!r} is part of the protocol; give yours another name")
        headers.update(extra)
    priority = checked_priority(options.get("priority"))
    message = Message(headers=headers, body=body, priority=priority, correlation_id=task_id, reply_to=family.reply_to)
    return Publication(queue, message, delay)


def time_limits(options: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The hard and the soft time limit among these options; raises ``ConfigurationError`` for those that make no sense."""
    hard, soft = (_limit(name, options.get(name)) for name in ("time_limit", "soft_time_limit"))
    if hard is not None and soft is not None and soft >= hard:
        raise ConfigurationError(f"soft_time_limit={soft:g} must be below time_limit={hard:g}: it would never be reached")
    return hard, soft


def _limit(name: str, value: Any) -> float | None:
    return None if value is None else checks.seconds(name, value, above=0.0)


def origin() -> str:
    """Who sends, as Celery writes it."""
    return f"gen{os.getpid()}@{_HOSTNAME}"


def _delay(options: Mapping[str, Any], now: float) -> float:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise ConfigurationError("countdown and eta exclude each other; give one")
    if eta is not None:
        countdown = _moment(eta, "eta") - now
    if countdown is None:
        return 0.0
    if not math.isfinite(countdown):
        raise ConfigurationError(f"countdown must be a number of seconds, not {countdown!r}")
    return max(0.0, float(countdown))


def _expires(expires: float | datetime | None, now: float) -> str | None:
    if expires is None:
        return None
    return _iso(_moment(expires, "expires") if isinstance(expires, datetime) else now + expires)


def _moment(value: datetime, name: str) -> float:
    if value.tzinfo is None:
        raise ConfigurationError(f"{name} needs a time zone; write datetime.now(UTC) + …, or use seconds")
    return value.timestamp()


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


def checked_priority(priority: int | None) -> int | None:
    """The priority; raises ``ConfigurationError`` for one that makes no sense."""
    if priority is not None and not (type(priority) is int and 0 <= priority <= 9):
        raise ConfigurationError(f"priority must be a whole number from 0 to 9, not {priority!r}")
    return priority
