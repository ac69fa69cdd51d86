"""Control entries on RabbitMQ: two streams, which every worker reads from the first entry on.

A pause stands until it is resumed, so the stream of pauses is never cut; people write it, and it stays small. Revocations are
forgotten after 30 days, and the oldest sooner where there are more than about 90,000 (20 MB), so that a worker reads them all
in a second. A stream is written without an fsync: a confirmed entry survives the broker's death, but not every power failure.

RabbitMQ doesn't say how long a stream is. But whoever reads "from the last on" is sent something at once, unless the stream
is empty; so an entry without a meaning is written to an empty stream, and none is empty ever after.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from amqp.exceptions import InternalError, NotFound, PreconditionFailed

from taskq import control, log
from taskq.broker.amqp.connection import BROKEN, close, connect
from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.outbox import Outbox
from taskq.broker.amqp.properties import decode
from taskq.broker.amqp.topology import CONTROL_STREAMS, PAUSES, REVOCATIONS, refusal
from taskq.broker.amqp.transport import Connection
from taskq.config import Settings, masked
from taskq.control import Control, Revoke
from taskq.errors import BrokerUnreachable, MessageError, UnsupportedFeature
from taskq.message import Message, Publication

#: How long a stream that holds anything may take to begin to send it, in seconds. Who is late gets an entry without a meaning.
BEGINNING = 0.3
#: Seconds between two looks at a stream that is not up yet.
PAUSE = 0.1
#: How many entries the broker may send ahead of our acknowledgements.
AHEAD = 1000
#: The entry of a stream that would be empty.
MEANINGLESS = b"{}"
_OFFSET = b"\x0fx-stream-offsetl"
_read_offset = struct.Struct(">Q").unpack_from

logger = log.get_logger("taskq.broker")

#: The offset of an entry of each stream, from which on nothing old can follow.
Ends = Mapping[str, int]


def publication(entry: Control) -> Publication:
    """The entry on its way into its stream."""
    return _publication(REVOCATIONS if isinstance(entry, Revoke) else PAUSES, control.encode(entry))


def _publication(stream: str, body: bytes) -> Publication:
    return Publication(stream, Message(headers={}, body=body))


def find_ends(settings: Settings, timeout: float) -> Ends:
    """Declare the streams and find their ends, on a connection of its own: RabbitMQ closes it where it has no streams.

    Raises ``UnsupportedFeature`` there, and ``BrokerUnreachable`` and ``ConnectionLost``.
    """
    deadline = time.monotonic() + timeout
    connection = connect(settings, timeout=timeout, heartbeat=0, silence=timeout, name="control")
    try:
        channel = connection.channel()
        for stream, arguments in CONTROL_STREAMS.items():
            while not _declared(channel, stream, arguments):
                if time.monotonic() + PAUSE > deadline:
                    raise BrokerUnreachable(
                        f"stream {stream!r} on {masked(settings.broker)} is down; if it stays so, delete it: "
                        "RabbitMQ loses a stream when it is killed within a second of its first declaration"
                    )
                time.sleep(PAUSE)
                channel = connection.channel()
        return {stream: _end(connection, stream, settings) for stream in CONTROL_STREAMS}
    except BROKEN as error:
        if _lacks_streams(error):
            raise UnsupportedFeature(
                f"{masked(settings.broker)} keeps no streams, so tasks cannot be revoked there, nor queues paused; "
                f"RabbitMQ 3.9 can, with its feature flag stream_queue enabled ({error})"
            ) from error
        raise refusal(error, settings) from error
    finally:
        close(connection)


def _declared(channel: Any, stream: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the stream is there; not for half a second after the broker's start, and then the channel is closed."""
    try:
        channel.queue_declare(stream, durable=True, auto_delete=False, arguments=arguments)
    except NotFound:
        return False
    return True


def _lacks_streams(error: Exception) -> bool:
    """Whether this answers the declaration by a broker that is too old, or has the feature switched off."""
    unknown = isinstance(error, PreconditionFailed) and "unsupported queue type" in str(error)
    return unknown or (isinstance(error, InternalError) and "feature flag" in str(error))


def _end(connection: Connection, stream: str, settings: Settings) -> int:
    """The offset of an entry in the last chunk of the stream, written now if there is none."""
    offsets: list[int] = []
    channel = connection.channel()
    _consume(channel, stream, "last", lambda message: offsets.append(_offset(message)))
    with contextlib.suppress(TimeoutError):
        until = time.monotonic() + BEGINNING
        while not offsets:
            connection.drain_events(until - time.monotonic())
    if not offsets:
        Outbox(connection, settings).send([_publication(stream, MEANINGLESS)])
    while not offsets:
        connection.drain_events()
    channel.close()
    return offsets[0]


def _consume(channel: Any, stream: str, offset: str, callback: Callable[[Delivered], None]) -> None:
    channel.request_prefetch(AHEAD)
    channel.basic_consume(stream, stream, callback=callback, nowait=True, arguments={"x-stream-offset": offset})


def _offset(message: Delivered) -> int:
    """Where the entry is in its stream; before all others where that cannot be read, since anybody may write headers."""
    properties = message.raw_properties
    if properties.count(_OFFSET) == 1:
        offset: int = _read_offset(properties, properties.index(_OFFSET) + len(_OFFSET))[0]
        return offset
    with contextlib.suppress(MessageError):
        named = decode(properties, b"").headers.get("x-stream-offset")
        if isinstance(named, int):
            return named
    return -1


class Controls:
    """Reads the entries on a channel of its own: what stands, then what comes. Of those about one thing, the last counts.

    ``seen`` is how many there were altogether.
    """

    def __init__(self, connection: Connection, ends: Ends) -> None:
        self._connection = connection
        self.seen = 0
        self._warned = False
        self._missing = dict(ends)
        self._entries: dict[str, Control] = {}
        self._channel = connection.channel()
        for stream in ends:
            _consume(self._channel, stream, "first", self._read)

    def read_standing(self) -> None:
        """Wait for all that was there before, until the connection's deadline."""
        while self._missing:
            self._connection.drain_events()
        # What is in the same chunk as the end is sent with it, before the answer to a later question.
        self._channel.queue_declare(PAUSES, passive=True)

    def take(self) -> list[Control]:
        """The entries since the last call, oldest first."""
        entries, self._entries = self._entries, {}
        return list(entries.values())

    def close(self) -> None:
        """Read no more."""
        self._channel.close()

    def _read(self, message: Delivered) -> None:
        message.ack()
        self.seen += 1
        stream = message.consumer_tag
        if self._missing and _offset(message) >= self._missing.get(stream, 2**64):
            del self._missing[stream]
        entry = control.decode(message.raw_body)
        if entry is None and message.raw_body != MEANINGLESS and not self._warned:
            self._warned = True
            logger.warning("control_ignored", stream=stream, entry=repr(message.raw_body[:100]))
        if entry is not None:
            key = control.key(entry)
            self._entries.pop(key, None)
            self._entries[key] = entry
