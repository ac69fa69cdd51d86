"""An attempt: one run of a message's task, as the running task sees it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn, overload

import msgspec

from taskq.decoding import UNREADABLE
from taskq.describe import text_of
from taskq.errors import ConfigurationError, MaxRetriesExceeded, Retry
from taskq.retry import RetryPolicy

_DEFAULT_POLICY = RetryPolicy()


class Past(msgspec.Struct, frozen=True):
    """An attempt that is over: where it ran, from when (seconds since the epoch), for how long, and what ended it.

    ``ended`` is the error as ``repr`` writes it, or what became of the process: ``"ValueError('x')"``, ``"SIGKILL"``.
    """

    worker: str
    started: float
    seconds: float
    ended: str


def past(entries: Any) -> tuple[Past, ...]:
    """The attempts in these JSON values; what does not look like one is left out, as it is only for information."""
    attempts = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            attempt = msgspec.convert(entry, Past)
            # What UTF-8 cannot carry fits into no record.
            f"{attempt.worker}{attempt.ended}".encode()
        except UNREADABLE:
            continue
        attempts.append(attempt)
    return tuple(attempts)


class Attempt(msgspec.Struct, frozen=True):
    """What a running task can know of itself; a task with ``bind=True`` receives it as its first argument.

    ``retries`` counts how often the task raised before, ``crashes`` how often the process that ran it died, ``deliveries`` how
    often the broker handed the message out. ``redelivered`` says that it had handed it out before, to a holder that vanished.
    ``history`` holds the attempts so far, oldest first. ``called_directly`` says that this is a plain call: nobody will retry.
    ``priority``, ``correlation_id`` and ``reply_to`` are the message's.
    """

    id: str
    task: str
    queue: str | None = None
    retries: int = 0
    crashes: int = 0
    redelivered: bool = False
    root_id: str | None = None
    parent_id: str | None = None
    headers: Mapping[str, Any] = msgspec.field(default_factory=dict)
    deliveries: int = 0
    history: tuple[Past, ...] = ()
    retry_policy: RetryPolicy = _DEFAULT_POLICY
    called_directly: bool = False
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None

    @property
    def timelimit(self) -> tuple[float | None, float | None]:
        """The hard and the soft time limit, in seconds, that the call itself asks for."""
        limits = self.headers.get("timelimit")
        return (limits[0], limits[1]) if isinstance(limits, list) and len(limits) == 2 else (None, None)

    @property
    def group(self) -> str | None:
        """The id of the group that the call is a member of."""
        group = self.headers.get("group")
        return group if isinstance(group, str) else None

    @property
    def eta(self) -> str | None:
        """Before which moment it must not run (ISO 8601)."""
        return self.headers.get("eta")

    @property
    def expires(self) -> str | None:
        """After which moment it must not run (ISO 8601)."""
        return self.headers.get("expires")

    @property
    def delivery_info(self) -> dict[str, Any]:
        """How the message came here, in Celery's words."""
        info = {"exchange": "", "routing_key": self.queue, "priority": self.priority}
        return {**info, "redelivered": self.redelivered}

    @property
    def properties(self) -> dict[str, Any]:
        """The message's properties, in Celery's words."""
        named = {"correlation_id": self.correlation_id, "reply_to": self.reply_to, "priority": self.priority}
        return {**named, "delivery_info": self.delivery_info}

    @property
    def number(self) -> int:
        """Which attempt this is, from 1."""
        return 1 + self.retries + self.crashes

    @property
    def request(self) -> Attempt:
        """Itself: Celery's tasks read ``self.request.id``."""
        return self

    @overload
    def retry(
        self,
        exc: BaseException | None = None,
        countdown: float | timedelta | None = None,
        eta: datetime | None = None,
        max_retries: int | None = None,
        *,
        throw: Literal[True] = True,
    ) -> NoReturn: ...
    @overload
    def retry(
        self,
        exc: BaseException | None = None,
        countdown: float | timedelta | None = None,
        eta: datetime | None = None,
        max_retries: int | None = None,
        *,
        throw: bool,
    ) -> Retry: ...
    def retry(
        self,
        exc: BaseException | None = None,
        countdown: float | timedelta | None = None,
        eta: datetime | None = None,
        max_retries: int | None = None,
        *,
        throw: bool = True,
    ) -> Retry:
        """Have the task run again, by raising ``Retry``; ``raise attempt.retry()`` says that the function ends here.

        It runs after ``countdown`` seconds, at ``eta``, or when the task's policy says. When it has had all its retries
        (``max_retries``, or the policy's), ``exc`` is raised, or ``MaxRetriesExceeded`` where none is given. In a plain call,
        ``exc`` is raised, or the error that is being handled, or ``Retry``. With ``throw=False``, a ``Retry`` is returned.
        """
        handled = sys.exception()
        if exc is not None and not isinstance(exc, BaseException):
            # Celery's own Retry takes a text first, and so does who is used to it.
            exc = MaxRetriesExceeded(text_of(exc))
        verdict = Retry(exc or handled, _countdown(countdown, eta), max_retries)
        if self.called_directly:
            raise exc or handled or verdict
        if not self.retry_policy.allows(self.retries, max_retries):
            limit = self.retry_policy.max_retries if max_retries is None else max_retries
            exhausted = MaxRetriesExceeded(f"task {self.task!r} ({self.id}) has had its last retry: max_retries={limit}")
            if exc is None:
                raise exhausted from handled
            # The cause tells the policy that this error is the last word, and keeps what caused the error itself.
            exhausted.__cause__ = exc.__cause__
            raise exc from exhausted
        if throw:
            raise verdict
        return verdict


def _countdown(countdown: float | timedelta | None, eta: datetime | None) -> float | timedelta | None:
    if eta is None:
        return countdown
    if countdown is not None:
        raise ConfigurationError("countdown and eta exclude each other; give one")
    if not isinstance(eta, datetime):
        raise ConfigurationError(f"eta must be a datetime with a time zone, not {eta!r}")
    if eta.tzinfo is None:
        raise ConfigurationError("eta needs a time zone; write datetime.now(UTC) + …, or use countdown")
    return eta.timestamp() - time.time()


current: ContextVar[Attempt | None] = ContextVar("taskq_attempt", default=None)


def current_attempt() -> Attempt | None:
    """The attempt that is running here, or None outside a task."""
    return current.get()
