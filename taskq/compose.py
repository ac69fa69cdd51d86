"""Composing: a call becomes a message of Celery's protocol 2, and where it goes. Pure."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from taskq.checks import MOST_SECONDS, shown, text
from taskq.errors import ConfigurationError
from taskq.message import SENT, Message, Publication
from taskq.options import checked

_HOSTNAME = socket.gethostname()


class Family(msgspec.Struct, frozen=True):
    """Where a call comes from: the task that sends it, the first one of them all, and the queue that replies go to."""

    parent_id: str | None = None
    root_id: str | None = None
    reply_to: str | None = None


NOBODY = Family()


def compose(
    task: str,
    body: bytes,
    options: Mapping[str, Any],
    queue: str,
    family: Family,
    now: float,
    *,
    group: str | None = None,
    group_index: int | None = None,
) -> Publication:
    """The message of a call whose body is encoded already, and where it goes. ``now`` is in seconds since the epoch.

    ``options`` are those of ``SendOptions``; ``queue`` is where it goes and its id is made up where they name none. Raises
    ``ConfigurationError``, naming the task, for what makes no sense.
    """
    try:
        text("the name of a task", task)
        options = checked(options)
        delay = _delay(options, now)
    except ConfigurationError as error:
        raise ConfigurationError(f"task {shown(task)}: {error}") from None
    queue = options.get("queue") or queue
    task_id = options.get("task_id") or str(uuid.uuid4())
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
        "timelimit": [options.get("time_limit"), options.get("soft_time_limit")],
        "origin": origin(),
        "ignore_result": options.get("ignore_result", False),
        SENT: now + delay,
    }
    if group_index is not None:
        headers["group_index"] = group_index
    if extra := options.get("headers"):
        headers.update(extra)
    message = Message(
        headers=headers,
        body=body,
        priority=options.get("priority"),
        correlation_id=task_id,
        reply_to=family.reply_to,
    )
    return Publication(queue, message, delay)


def origin() -> str:
    """Who sends, as Celery writes it."""
    return f"gen{os.getpid()}@{_HOSTNAME}"


def _delay(options: Mapping[str, Any], now: float) -> float:
    eta = options.get("eta")
    if eta is None:
        return max(0.0, float(options.get("countdown", 0.0)))
    delay: float = eta.timestamp() - now
    if delay > MOST_SECONDS:
        raise ConfigurationError(f"eta is {eta.isoformat()}, more than a hundred years away")
    return max(0.0, delay)


def _expires(expires: float | datetime | None, now: float) -> str | None:
    if expires is None:
        return None
    return expires.isoformat() if isinstance(expires, datetime) else _iso(now + expires)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
