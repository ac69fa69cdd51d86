"""When a task that raised runs again: a policy, as a value. It decides and computes; it neither waits nor sends.

The names and what they mean are Celery's (https://docs.celeryq.dev/en/stable/userguide/tasks.html#retrying). Three things
differ: a backoff may be a fraction of a second, it also sets the pace of ``retry()`` without a countdown, and ``Reject`` is
never taken for an error.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

from taskq import checks
from taskq.errors import ConfigurationError, MaxRetriesExceeded, Retry, Terminated, Verdict, check_limit

#: Beyond this exponent every delay is at its maximum, and 2.0 to its power is still a float.
_LARGEST_EXPONENT = 1000
_SECONDS = frozenset({"default_retry_delay", "retry_backoff", "retry_backoff_max"})


class RetryOptions(TypedDict, total=False):
    """What a task's decorator may say about retries; see ``RetryPolicy``."""

    max_retries: int | None
    default_retry_delay: float | timedelta
    autoretry_for: tuple[type[BaseException], ...]
    dont_autoretry_for: tuple[type[BaseException], ...]
    retry_on: Callable[[BaseException], bool] | None
    retry_backoff: float | timedelta | bool
    retry_backoff_max: float | timedelta
    retry_jitter: bool


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which errors of a task are worth another attempt, how many, and after how many seconds.

    ``autoretry_for`` and ``dont_autoretry_for`` are classes of exceptions; the second wins, and ``retry_on`` decides about
    what neither names. The n-th retry comes ``retry_backoff * 2 ** (n - 1)`` seconds after the error, ``retry_backoff_max`` at
    most, or with ``retry_jitter`` at a random moment until then; without a backoff, after ``default_retry_delay``. There are
    ``max_retries`` (None: no end of them). Raises ``ConfigurationError`` for values that make no sense.
    """

    max_retries: int | None = 3
    default_retry_delay: float = 180.0
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_on: Callable[[BaseException], bool] | None = None
    retry_backoff: float = 0.0
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True

    def __post_init__(self) -> None:
        check_limit(self.max_retries, "no end of them")
        for name in _SECONDS:
            checks.seconds(name, getattr(self, name))
        for name in ("autoretry_for", "dont_autoretry_for"):
            _check_classes(name, getattr(self, name))
        if self.retry_on is not None and not callable(self.retry_on):
            raise ConfigurationError(f"retry_on must be a function that is given the exception, not {self.retry_on!r}")
        if not isinstance(self.retry_jitter, bool):
            raise ConfigurationError(f"retry_jitter must be True or False, not {self.retry_jitter!r}")

    def wants(self, error: BaseException) -> bool:
        """Whether a task that raised this should run again, if it may. Raises what ``retry_on`` raises."""
        # The task has had its say, or its say is over: asking again would overrule a limit that it gave itself.
        if isinstance(error, (Verdict, MaxRetriesExceeded, Terminated)) or isinstance(error.__cause__, MaxRetriesExceeded):
            return False
        if isinstance(error, self.dont_autoretry_for):
            return False
        if isinstance(error, self.autoretry_for):
            return True
        return self.retry_on is not None and bool(self.retry_on(error))

    def allows(self, retries: int, max_retries: int | None = None) -> bool:
        """Whether a task that has had so many retries may have another; ``max_retries`` is the policy's where it is None."""
        limit = self.max_retries if max_retries is None else max_retries
        return limit is None or retries < limit

    def delay(self, retries: int, chance: Callable[[], float] = random.random) -> float:
        """The seconds from the error to the next attempt of a task that has had so many retries. ``chance`` is in [0, 1)."""
        if not self.retry_backoff:
            return self.default_retry_delay
        longest = min(self.retry_backoff_max, self.retry_backoff * 2.0 ** min(retries, _LARGEST_EXPONENT))
        return chance() * longest if self.retry_jitter else longest


def policy_of(options: Mapping[str, Any]) -> RetryPolicy:
    """The policy that a task's options make; raises ``ConfigurationError`` for values that make no sense."""
    given = {name: options[name] for name in RetryOptions.__annotations__ if name in options}
    if isinstance(given.get("retry_backoff"), bool):
        given["retry_backoff"] = float(given["retry_backoff"])
    for name in _SECONDS & given.keys():
        given[name] = checks.seconds(name, given[name])
    for name in ("autoretry_for", "dont_autoretry_for"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    return RetryPolicy(**given)


def sound(error: BaseException) -> BaseException:
    """The exception, or where it is a retry that asks for what makes no sense, the one that says so."""
    if not isinstance(error, Retry):
        return error
    try:
        error.check()
    except Exception as odd:  # noqa: BLE001  # its class is the application's
        odd.__cause__ = error
        return odd
    return error


def _check_classes(name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise ConfigurationError(f"{name} must be a tuple of exception classes, such as (OSError,), not {value!r}")
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(f"{name} must hold exception classes, and {kind!r} is none")
