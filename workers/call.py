"""A call: what a message says, read and checked, but for the task itself. Nothing here runs code of the application."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from taskq.attempt import Attempt, Past
from taskq.broker.interface import Delivery
from taskq.errors import MessageError
from taskq.message import ALONE, DELIVERIES, JSON, RETURNS, Message
from taskq.retry import RetryPolicy
from taskq.serialization import decode
from taskq.workers.outcome import past


class Call(msgspec.Struct, frozen=True):
    """What a message says, read but not yet believed: arguments are decoded later.

    ``eta`` and ``expires`` are in epoch seconds, the limits in seconds; None where the message names none. ``may_have_begun``
    says that the message came back from somebody who did not give it back.
    """

    attempt: Attempt
    message: Message
    may_have_begun: bool
    ignore_result: bool
    eta: float | None
    expires: float | None
    time_limit: float | None
    soft_time_limit: float | None


def read_call(message: Message, delivery: Delivery, policy: RetryPolicy) -> Call:
    """What the message's headers say; raises ``MessageError`` where they are not Celery's protocol 2."""
    headers = message.headers
    task_id, task = headers.get("id"), headers.get("task")
    if not isinstance(task_id, str) or not isinstance(task, str):
        raise MessageError("the headers 'id' and 'task' are missing: this is no message of Celery's protocol 2")
    deliveries = message.count(DELIVERIES)
    may_have_begun = delivery.redelivered or ALONE in headers or RETURNS in headers
    attempt = Attempt(
        id=task_id,
        task=task,
        queue=delivery.queue,
        retries=message.count("retries"),
        crashes=message.crashes,
        deliveries=deliveries,
        redelivered=may_have_begun or deliveries > 0,
        root_id=headers.get("root_id"),
        parent_id=headers.get("parent_id"),
        headers=headers,
        history=_history(message),
        retry_policy=policy,
    )
    time_limit, soft_time_limit = _limits(headers.get("timelimit"))
    return Call(
        attempt,
        message,
        may_have_begun,
        bool(headers.get("ignore_result")),
        _moment(headers.get("eta")),
        _moment(headers.get("expires")),
        time_limit,
        soft_time_limit,
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


def _history(message: Message) -> tuple[Past, ...]:
    """The attempts that the message remembers; what does not look like one is left out, as it is only for information."""
    attempts = []
    for entry in past(message):
        try:
            attempts.append(msgspec.convert(entry, Past))
        except msgspec.ValidationError:
            continue
    return tuple(attempts)


def _limits(value: Any) -> tuple[float | None, float | None]:
    """The hard and the soft limit out of Celery's header ``timelimit``."""
    match value:
        case None:
            return None, None
        case [hard, soft]:
            return _limit(hard), _limit(soft)
    raise MessageError(f"the header 'timelimit' is {value!r}, not [hard, soft]")


def _limit(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise MessageError(f"{value!r} is no time limit in seconds")
    return float(value) or None


def _moment(value: Any) -> float | None:
    """Seconds since the epoch out of an ISO 8601 text; a moment without a zone is UTC, as in Celery."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise MessageError(f"{value!r} is no ISO 8601 moment") from None
