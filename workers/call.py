"""A call: what a message says, read and checked, but for the task itself. Nothing here runs code of the application."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from taskq.attempt import Attempt, past
from taskq.broker.interface import Delivery
from taskq.decoding import decoded
from taskq.describe import repr_of
from taskq.errors import MessageError
from taskq.launch import FAILURE, Failed
from taskq.message import ALONE, DELIVERIES, HISTORY, JSON, RETURNS, Message
from taskq.results.handle import rebuilt
from taskq.retry import RetryPolicy
from taskq.serialization import decode
from taskq.step import NOTHING_FOLLOWS, Embed
from taskq.task import Task
from taskq.workers.ending import check, read_embed


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
    if not isinstance(task_id, str) or not task_id or not isinstance(task, str):
        raise MessageError("the headers 'id' and 'task' are missing: this is no message of Celery's protocol 2")
    root_id, parent_id, index = headers.get("root_id"), headers.get("parent_id"), headers.get("group_index")
    # Written out: each call comes through here.
    if not (root_id is None or isinstance(root_id, str)):
        raise _cannot_be("root_id", root_id)
    if not (parent_id is None or isinstance(parent_id, str)):
        raise _cannot_be("parent_id", parent_id)
    if not (index is None or type(index) is int):
        raise _cannot_be("group_index", index)
    group = headers.get("group")
    if not f"{task_id}{task}{root_id}{parent_id}{group}".isascii():
        for text in (task_id, task, root_id, parent_id, group):
            _check_unicode(text if isinstance(text, str) else "")
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
        root_id=root_id,
        parent_id=parent_id,
        headers=headers,
        history=past(headers.get(HISTORY)),
        retry_policy=policy,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
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


def _cannot_be(header: str, value: Any) -> MessageError:
    return MessageError(f"the header {header!r} is {repr_of(value)}, which it cannot be")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MessageError(f"{text!a} holds a lone surrogate, which UTF-8 cannot carry") from None


class Arguments(NamedTuple):
    """A message's body: the arguments of the call, and what follows it."""

    args: list[Any]
    kwargs: dict[str, Any]
    embed: Embed


def read_arguments(message: Message, chords: bool) -> Arguments:
    """The arguments of the call, and what follows; raises ``MessageError`` where they cannot be had, running no code.

    Without ``chords``, nobody counts the members of chords, and a message of one cannot be run: its chord would never end.
    """
    if message.content_type != JSON:
        raise MessageError(f"the content type is {message.content_type!r}; taskq reads {JSON!r} only")
    if compression := message.headers.get("compression"):
        raise MessageError(f"the body is compressed ({compression}), which this version of taskq does not read")
    match decode(message.body, message.content_encoding):
        case [list() as args, dict() as kwargs, dict() as embed]:
            if not any(embed.values()):
                return Arguments(args, kwargs, NOTHING_FOLLOWS)
            # Read now what is to follow: were it no use, the task must not run.
            follows = read_embed(message)
            check(follows)
            if follows.chord is not None and not isinstance(message.headers.get("group"), str):
                raise MessageError("it is a member of a chord, but its header 'group' does not say of which")
            if follows.chord is not None and not chords:
                raise MessageError("it is a member of a chord, whose members only sqlite, redis and postgresql backends count")
            return Arguments(args, kwargs, follows)
    raise MessageError("the body is not [args, kwargs, embed]")


def _failed(header: Any) -> Failed:
    return msgspec.convert(header, Failed)


def with_failure(arguments: Arguments, message: Message, task: Task[..., Any]) -> Arguments:
    """The arguments of an errback: the failed task's id, or, as with Celery's newer ones, request, exception and traceback.

    Which of the two it wants shows in how many positional arguments it takes.
    """
    if FAILURE not in message.headers or not arguments.args or not task.takes(len(arguments.args) + 2):
        return arguments
    failed = decoded(_failed, message.headers[FAILURE], f"the failure in the header {FAILURE!r}")
    request = Attempt(failed.id, failed.task)
    exception = rebuilt({"status": failed.status, "result": failed.failure, "traceback": failed.traceback})
    return arguments._replace(args=[request, exception, failed.traceback, *arguments.args[1:]])


def _limits(value: Any) -> tuple[float | None, float | None]:
    """The hard and the soft limit out of Celery's header ``timelimit``."""
    match value:
        case None:
            return None, None
        case [hard, soft]:
            return _limit(hard), _limit(soft)
    raise MessageError(f"the header 'timelimit' is {repr_of(value)}, not [hard, soft]")


def _limit(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise MessageError(f"{repr_of(value)} is no time limit in seconds")
    return float(value) or None


def _moment(value: Any) -> float | None:
    """Seconds since the epoch out of an ISO 8601 text; a moment without a zone is UTC, as in Celery."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise MessageError(f"{repr_of(value)} is no ISO 8601 moment") from None
