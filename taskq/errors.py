"""Every error that taskq raises, under one root.

* TaskqError
  * ConfigurationError        a setting, a name or an option is wrong
    * UnsupportedFeature      this broker or queue type cannot keep the promise that was asked for
    * NotBound                a task that belongs to no app yet was sent
  * ArgumentRefused           an argument that JSON cannot carry faithfully (also a TypeError)
  * MessageTooLarge           the encoded message is over ``max_message_bytes``
  * MessageError              a received message cannot be understood
  * BrokerError
    * BrokerUnreachable       no connection within the deadline, or access refused
    * PublishTimeout          no confirmation within the deadline: the message may or may not exist
    * Unroutable              the broker found no queue for the message
    * PublishRejected         the broker refused responsibility (a full queue, for example)
    * QueueMismatch           the queue exists with other arguments
    * ConnectionLost          an open connection broke
    * DatabaseError           an SQLite file is damaged, foreign, read-only, locked or its disk is full
  * ResultError
    * ResultsDisabled         no backend is configured
    * ResultTimeout           no result within the timeout (also a TimeoutError)
    * TaskFailed              the task failed with an exception that cannot be rebuilt here
"""

from __future__ import annotations

from typing import Any


class TaskqError(Exception):
    """The root of everything that taskq raises on purpose."""


class ConfigurationError(TaskqError):
    """A setting, a name or an option is wrong; the message says which and what would be right."""


class UnsupportedFeature(ConfigurationError):
    """The broker or the queue type cannot keep the promise that was asked for."""


class NotBound(ConfigurationError):
    """A task that belongs to no app was sent; ``app.include("its.module")`` takes it in."""


class ArgumentRefused(TaskqError, TypeError):
    """An argument that JSON cannot carry faithfully; the message names the argument and a way out."""


class MessageTooLarge(TaskqError, ValueError):
    """The encoded message is over ``max_message_bytes``."""


class MessageError(TaskqError):
    """A received message cannot be understood; it is dead-lettered with this text as the reason."""


class BrokerError(TaskqError):
    """The broker could not do what was asked.

    From ``send_many``, ``confirmed`` holds the ids that the broker had taken responsibility for before it failed.
    """

    confirmed: tuple[str, ...] = ()


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


class ConnectionLost(BrokerError):
    """An open connection to the broker broke.

    From a publication, ``unconfirmed`` holds the publications without a confirmation (None: any of them), and ``in_doubt`` says
    whether the broker may have taken them all the same.
    """

    unconfirmed: tuple[Any, ...] | None = None
    in_doubt: bool = True


class DatabaseError(BrokerError):
    """An SQLite file is damaged, foreign, read-only or locked, or its disk is full."""


class ResultError(TaskqError):
    """A result could not be had."""


class ResultsDisabled(ResultError):
    """No backend is configured, so no result is kept."""


class ResultTimeout(ResultError, TimeoutError):
    """No result within the timeout; the task may still end."""


class TaskFailed(ResultError):
    """The task failed with an exception that cannot be rebuilt here.

    ``exc_type`` is the name of the original class, ``traceback`` the text of the remote traceback.
    """

    def __init__(self, exc_type: str, text: str, traceback: str | None = None) -> None:
        super().__init__(f"{exc_type}: {text}" if text else exc_type)
        self.exc_type = exc_type
        self.traceback = traceback
