"""The brokers, and the only place that knows Kombu. The rest of taskq sees ``interface``.

Drivers are imported when a URL asks for them, so that ``import taskq`` stays fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskq.broker.interface import Check, Consumer, Decode, Line, Replies, Session, TakeReply
from taskq.config import Settings
from taskq.locks import importing

if TYPE_CHECKING:
    from taskq.broker.pidbox import Caller


def open_session(settings: Settings, timeout: float) -> Session:
    """Connect to the broker to publish; raises ``BrokerUnreachable`` after ``timeout`` seconds."""
    if settings.broker.startswith("sqlite:"):
        with importing:
            from taskq.broker.sqlite.session import SqliteSession

        return SqliteSession(settings, timeout)
    with importing:
        from taskq.broker.amqp.session import AmqpSession

    return AmqpSession(settings, timeout)


def open_consumer(settings: Settings, queues: Sequence[str]) -> Consumer:
    """A consumer of these queues, not yet connected."""
    if settings.broker.startswith("sqlite:"):
        with importing:
            from taskq.broker.sqlite.consumer import SqliteConsumer

        return SqliteConsumer(settings, queues)
    with importing:
        from taskq.broker.amqp.consumer import AmqpConsumer

    return AmqpConsumer(settings, queues)


def open_replies(settings: Settings, take: TakeReply) -> Replies:
    """A reply queue of this process' own; ``take`` is called for each reply. Raises ``BrokerUnreachable``."""
    with importing:
        from taskq.broker.amqp.replies import AmqpReplies

    return AmqpReplies(settings, take)


def open_line(settings: Settings, name: str, timeout: float) -> Line:
    """Connect for what nobody keeps; ``name`` is shown by the broker. Raises ``BrokerUnreachable`` or ``DatabaseError``."""
    if settings.broker.startswith("sqlite:"):
        with importing:
            from taskq.broker.sqlite.line import SqliteLine

        return SqliteLine(settings, name, timeout)
    with importing:
        from taskq.broker.amqp.line import AmqpLine

    return AmqpLine(settings, name, timeout)


def open_caller(settings: Settings) -> Caller:
    """Connect to give commands to workers. Raises ``BrokerUnreachable`` or ``DatabaseError``."""
    with importing:
        from taskq.broker.pidbox import Caller

    # No heartbeats: nobody sends any between two commands.
    line = open_line(dataclasses.replace(settings, heartbeat=0.0), "caller", settings.publish_timeout)
    try:
        return Caller(line)
    except BaseException:
        line.close()
        raise


def checker(settings: Settings) -> Check:
    """What finds out whether this broker could carry a publication; it asks nobody and costs microseconds."""
    if settings.broker.startswith("sqlite:"):
        with importing:
            from taskq.broker.sqlite.publication import check as check_sqlite

        return check_sqlite
    with importing:
        from taskq.broker.amqp.checks import checker as checker_amqp

    return checker_amqp(settings)


def decoder(settings: Settings) -> Decode:
    """What reads the bytes of this broker's deliveries."""
    if settings.broker.startswith("sqlite:"):
        with importing:
            from taskq.broker.sqlite.properties import decode as decode_sqlite

        return decode_sqlite
    with importing:
        from taskq.broker.amqp.properties import decode as decode_amqp

    return decode_amqp


def identifier(settings: Settings) -> Callable[[bytes], str | None]:
    """What reads the task id alone out of a delivery's properties."""
    if settings.broker.startswith("sqlite:"):
        with importing:
            from taskq.broker.sqlite.properties import correlation_id as correlation_id_sqlite

        return correlation_id_sqlite
    with importing:
        from taskq.broker.amqp.properties import correlation_id as correlation_id_amqp

    return correlation_id_amqp
