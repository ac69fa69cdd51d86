"""A signature: a call that has not been sent yet, and how it becomes a message."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack

from taskq.attempt import Attempt
from taskq.errors import ConfigurationError, NotBound
from taskq.message import Message, Publication
from taskq.results.handle import AsyncResult
from taskq.serialization import encode_call

R = TypeVar("R")
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_RESERVED = frozenset({"lang", "task", "id", "eta", "expires", "group", "retries", "timelimit", "root_id", "parent_id"})


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


class Send(Protocol):
    """Sends signatures and returns their results, in order."""

    def __call__(self, signatures: Sequence[Signature[Any]], /) -> list[AsyncResult[Any]]:
        """Send them."""


@dataclass(frozen=True)
class Signature(Generic[R]):
    """A call that has not been sent: a task's name, its arguments and how to send it."""

    task: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: SendOptions = field(default_factory=SendOptions)
    parameters: tuple[str, ...] = field(default=(), repr=False)
    send: Send | None = field(default=None, repr=False, compare=False)

    def delay(self) -> AsyncResult[R]:
        """Send the call; see ``Task.delay``."""
        if self.send is None:
            raise NotBound(f"task {self.task!r} belongs to no app; take its module in with app.include(...)")
        return self.send([self])[0]

    def apply_async(self, **options: Unpack[SendOptions]) -> AsyncResult[R]:
        """Send the call with these options too."""
        return self.set(**options).delay()

    def set(self, **options: Unpack[SendOptions]) -> Signature[R]:
        """A copy to be sent with these options too."""
        return replace(self, options={**self.options, **options})


def compose(signature: Signature[Any], *, default_queue: str, parent: Attempt | None, now: float) -> Publication:
    """The message of a call, in Celery's protocol 2, and where it goes. ``now`` is in seconds since the epoch.

    Raises ``ArgumentRefused`` for arguments that JSON cannot carry and ``ConfigurationError`` for options that make no sense.
    """
    options = signature.options
    if unknown := options.keys() - OPTION_NAMES:
        raise ConfigurationError(
            f"unknown option {min(unknown)!r} for task {signature.task!r}; there are {sorted(OPTION_NAMES)}"
        )
    task_id = options.get("task_id") or str(uuid.uuid4())
    delay = _delay(options, now)
    headers: dict[str, Any] = {
        "lang": "py",
        "task": signature.task,
        "id": task_id,
        "root_id": parent.root_id or parent.id if parent else task_id,
        "parent_id": parent.id if parent else None,
        "group": None,
        "retries": 0,
        "eta": _iso(now + delay) if delay else None,
        "expires": _expires(options.get("expires"), now),
        "timelimit": list(time_limits(options)),
        "origin": origin(),
        "ignore_result": bool(options.get("ignore_result")),
    }
    if extra := options.get("headers"):
        if clash := _RESERVED & extra.keys():
            raise ConfigurationError(f"the header {min(clash)!r} is part of the protocol; give yours another name")
        headers.update(extra)
    body = encode_call(signature.task, signature.args, signature.kwargs, _EMBED, signature.parameters)
    message = Message(headers=headers, body=body, priority=_priority(options.get("priority")), correlation_id=task_id)
    return Publication(options.get("queue") or default_queue, message, delay)


def time_limits(options: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The hard and the soft time limit among these options; raises ``ConfigurationError`` for those that make no sense."""
    hard, soft = options.get("time_limit"), options.get("soft_time_limit")
    for name, limit in (("time_limit", hard), ("soft_time_limit", soft)):
        if limit is not None and not (type(limit) in (int, float) and math.isfinite(limit) and limit > 0):
            raise ConfigurationError(f"{name} must be a number of seconds above 0, not {limit!r}")
    if hard is not None and soft is not None and soft >= hard:
        raise ConfigurationError(f"soft_time_limit={soft:g} must be below time_limit={hard:g}: it would never be reached")
    return hard, soft


def origin() -> str:
    """Who sends, as Celery writes it."""
    return f"gen{os.getpid()}@{_HOSTNAME}"


_HOSTNAME = socket.gethostname()


def _delay(options: SendOptions, now: float) -> float:
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


def _priority(priority: int | None) -> int | None:
    if priority is not None and not (type(priority) is int and 0 <= priority <= 9):
        raise ConfigurationError(f"priority must be a whole number from 0 to 9, not {priority!r}")
    return priority
