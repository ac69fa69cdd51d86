"""Every error that taskq raises, under one root.

* TaskqError
  * ConfigurationError        a setting, a name or an option is wrong
    * WrongType               it is of a type that is never right (also a TypeError)
    * UnsupportedFeature      this broker or queue type cannot keep the promise that was asked for
    * NotBound                a task that belongs to no app yet was sent
  * ArgumentRefused           an argument that JSON cannot carry faithfully (also a TypeError)
  * MessageTooLarge           the encoded message is over ``max_message_bytes``
    * ResultTooLarge          a task's encoded return value is over ``max_result_bytes``
  * MessageError              a received message cannot be understood
  * BrokerError
    * BrokerUnreachable       no connection within the deadline, or access refused
    * PublishTimeout          no confirmation within the deadline: the message may or may not exist
    * Unroutable              the broker found no queue for the message
    * PublishRejected         the broker refused responsibility (a full queue, for example)
    * QueueMismatch           the queue exists with other arguments
    * ConnectionLost          an open connection broke
    * DatabaseError           an SQLite file is damaged, foreign, read-only, locked or its disk is full
    * BackendError            the result backend is unreachable or refuses
      * RecordRefused         it refuses this one record, and would for ever
  * Verdict                   what a task raises on purpose
    * Retry                   run me again
    * Reject                  the message is wrong: to the dead letters, or back to the queue
    * Ignore                  record neither success nor failure
  * MaxRetriesExceeded        a retry was asked for, and there are none left
  * SoftTimeLimitExceeded     raised inside a task at its soft time limit
  * ResultError
    * ResultsDisabled         no result is kept: no backend is configured, or the call said ignore_result
    * ResultTimeout           no result within the timeout (also a TimeoutError)
    * TaskFailed              the task failed with an exception that cannot be rebuilt here
      * DeadLettered          its message is among the dead letters
      * TimeLimitExceeded     its process was killed at the hard time limit
      * WorkerLost            its process died, or may have, and it must not run again
      * ChordError            a member of its chord ended badly, so it has not run
      * TaskRevoked           it was revoked
        * TaskExpired         its time was over before it ran
* Terminated                  raised inside a task that is revoked while it runs (a BaseException)
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from taskq.describe import repr_of, text_of

#: The longest that a retry may be put off, in seconds: a century.
LONGEST_COUNTDOWN = 100 * 366 * 86_400.0
#: The most retries that a number can ask for; None, in a task's policy, is no end of them.
MOST_RETRIES = 2**31 - 1


class TaskqError(Exception):
    """The root of everything that taskq raises on purpose."""


class ConfigurationError(TaskqError):
    """A setting, a name or an option is wrong; the message says which and what would be right."""


class WrongType(ConfigurationError, TypeError):
    """An option or an argument is of a type that is never right."""


class UnsupportedFeature(ConfigurationError):
    """The broker or the queue type cannot keep the promise that was asked for."""


class NotBound(ConfigurationError):
    """A task that belongs to no app was sent; ``app.include("its.module")`` takes it in."""


class ArgumentRefused(TaskqError, TypeError):
    """An argument that JSON cannot carry faithfully; the message names the argument and a way out."""


class MessageTooLarge(TaskqError, ValueError):
    """The encoded message is over ``max_message_bytes``."""


class ResultTooLarge(MessageTooLarge):
    """A task's encoded return value is over ``max_result_bytes``."""


class MessageError(TaskqError):
    """A received message cannot be understood; it is dead-lettered with this text as the reason."""


class BrokerError(TaskqError):
    """The broker could not do what was asked.

    From ``send_many``, ``confirmed`` holds the ids that the broker had taken responsibility for before it failed. ``passing``
    says that another try is worth it; what is refused for good stays refused, however often it is asked.
    """

    confirmed: tuple[str, ...] = ()

    def __init__(self, *args: object, passing: bool = True) -> None:
        super().__init__(*args)
        self.passing = passing


class BrokerUnreachable(BrokerError):
    """No connection within the deadline, or the broker refused access."""


class PublishTimeout(BrokerError, TimeoutError):
    """No confirmation within the deadline. The message may exist: send it again only if running twice is harmless."""


class Unroutable(BrokerError):
    """The broker found no queue for the message; nothing was stored."""


class PublishRejected(BrokerError):
    """The broker refused responsibility for the message, because the queue is full, for example; nothing was stored."""


class QueueMismatch(BrokerError):
    """The queue exists with other arguments than the ones that taskq declares."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args, passing=False)


class ConnectionLost(BrokerError):
    """An open connection to the broker broke.

    From a publication, ``unconfirmed`` holds the publications without a confirmation (None: any of them), and ``in_doubt`` says
    whether the broker may have taken them all the same. ``refused`` says that the broker broke it because of what one of them
    held, so that sending the same again would break the next one too.
    """

    unconfirmed: tuple[Any, ...] | None = None
    in_doubt: bool = True
    refused: bool = False


class DatabaseError(BrokerError):
    """An SQLite file is damaged, foreign, read-only or locked, or its disk is full.

    ``passing`` says that this may pass: a full disk or a locked file is worth another try, and a damaged file is not.
    """

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text, passing=passing)


class BackendError(BrokerError):
    """The result backend is unreachable, or refuses; the next call connects anew.

    A kind of ``BrokerError``, because a worker treats both alike: what has not been stored stays in custody, unacked.
    """


class RecordRefused(BackendError):
    """The result backend takes other records, but would never take this one: it is too large for it, for example."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args, passing=False)


class Verdict(TaskqError):
    """What a task raises to say how it ends, where neither a return value nor an error says it."""


class Retry(Verdict):
    """Raised by a task that is to run again; ``attempt.retry()`` raises it too.

    ``exc`` is the error that made it necessary, or a text that says what did. It runs after ``countdown`` seconds (None: as the
    task's policy says), unless that would be more than ``max_retries`` (None: the task's).
    """

    # A subclass with a constructor of its own need not call this one.
    exc: BaseException | None = None
    countdown: float | None = None
    max_retries: int | None = None

    def __init__(
        self,
        exc: BaseException | str | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
    ) -> None:
        countdown = _countdown(countdown)
        check_limit(max_retries, "the task's")
        when = "" if countdown is None else f" in {countdown:g} s"
        if exc is None or isinstance(exc, BaseException):
            self.exc = exc
            super().__init__(f"retry{when}" if exc is None else f"retry{when}: {repr_of(exc)}")
        else:
            # Whoever reads of it in a result makes the same of it again.
            self.exc = None
            super().__init__(text_of(exc))
        self.countdown = None if countdown is None else max(0.0, float(countdown))
        self.max_retries = max_retries

    def check(self) -> None:
        """Take what was set on it since, or raise ``ConfigurationError`` where that makes no sense."""
        if self.exc is not None and not isinstance(self.exc, BaseException):
            raise ConfigurationError(f"the exc of a retry must be an exception or None, not {repr_of(self.exc)}")
        check_limit(self.max_retries, "the task's")
        countdown = _countdown(self.countdown)
        self.countdown = None if countdown is None else max(0.0, float(countdown))


def check_limit(value: Any, none: str) -> None:
    """Raise ``ConfigurationError`` for what is no number of retries, nor None, which means ``none``."""
    if value is not None and not (type(value) is int and 0 <= value <= MOST_RETRIES):
        raise ConfigurationError(
            f"max_retries must be a whole number from 0 to {MOST_RETRIES}, or None for {none}, not {repr_of(value)}"
        )


def _countdown(value: Any) -> float | None:
    """The seconds that are meant, which may be a ``timedelta``; a retry that is due already is due at once."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds is not None and (type(seconds) not in (int, float) or not -math.inf < seconds <= LONGEST_COUNTDOWN):
        raise ConfigurationError(
            f"the countdown of a retry must be a number of seconds, a century at most, not {repr_of(value)}"
        )
    return seconds


class Reject(Verdict):
    """Raised by a task that can make nothing of its message: it is dead-lettered, or with ``requeue`` goes back to its queue.

    The reason is a text or an exception; ``reason`` is its text.
    """

    def __init__(self, reason: str | BaseException | None = "", *, requeue: bool = False) -> None:
        self.reason = repr_of(reason) if isinstance(reason, BaseException) else "" if reason is None else text_of(reason)
        self.requeue = requeue
        super().__init__(self.reason)


class Ignore(Verdict):
    """Raised by a task that asks for no record of success or failure."""


class MaxRetriesExceeded(TaskqError):
    """A retry was asked for, and the task has had all that it may have."""


class SoftTimeLimitExceeded(TaskqError):
    """Raised inside a task at its soft time limit; what is left until the hard one is for tidying up."""


class Terminated(BaseException):
    """Raised inside a task that is revoked with ``terminate`` while it runs, before it is killed.

    No ``Exception``: a task that survives whatever goes wrong should not survive this.
    """


class ResultError(TaskqError):
    """A result could not be had."""


class ResultsDisabled(ResultError):
    """No result is kept, since no backend is configured, or the call was sent with ``ignore_result``."""


class ResultTimeout(ResultError, TimeoutError):
    """No result within the timeout; the task may still end."""


class TaskFailed(ResultError):
    """The task failed with an exception that cannot be rebuilt here.

    ``exc_type`` is the name of the original class, ``traceback`` the text of the remote traceback. Given one text alone, as
    by a Celery client that reads the result, it is an error of its own class.
    """

    def __init__(self, exc_type: str, text: str | None = None, traceback: str | None = None) -> None:
        if text is None:
            exc_type, text = type(self).__name__, exc_type
        super().__init__(f"{exc_type}: {text}" if text else exc_type)
        self.exc_type = exc_type
        self.traceback = traceback
        self._text = text

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[str, str, str | None]]:
        return type(self), (self.exc_type, self._text, self.traceback)


class DeadLettered(TaskFailed):
    """The task's message is among the dead letters of its queue, with the reason."""


class TimeLimitExceeded(TaskFailed):
    """The task ran into its hard time limit, and its process was killed."""


class WorkerLost(TaskFailed):
    """The process that ran the task died, or may have, and the task must not run again."""


class ChordError(TaskFailed):
    """The body of a chord has not run, since a member of the chord ended badly."""


class TaskRevoked(TaskFailed):
    """The task was revoked: it did not run, or not to its end."""


class TaskExpired(TaskRevoked):
    """The task's ``expires`` was over before it ran."""
