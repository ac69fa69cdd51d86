"""Kombu's pyamqp transport with a reader and a writer of its own.

py-amqp keeps the protocol: handshake, channels, methods, errors. Here is what it does one read per frame part and one write
per method. Nothing is registered with Kombu: other users of Kombu in the process keep the stock transport.

Invariants: a send never waits, what the socket does not take stays in the buffer; a wait never outlasts
``Connection.deadline``.
"""

from __future__ import annotations

import select
import struct
import time
from functools import lru_cache
from typing import Any

from amqp import spec
from amqp.exceptions import UnexpectedFrame
from kombu.transport import pyamqp

from taskq.broker.amqp.channel import FRAME_END, METHOD, Channel
from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.sockets import Tcp, Tls

HEADER, BODY = 2, 3
ACK = struct.pack(">HH", *spec.Basic.Ack)
DELIVER = struct.pack(">HH", *spec.Basic.Deliver)
PUBLISH = struct.pack(">HHH", *spec.Basic.Publish, 0)
BASIC = spec.Basic.CLASS_ID
#: A frame is its type, channel and size, the payload, and an end byte.
FRAME_OVERHEAD = 8
_frame = struct.Struct(">BHI").unpack_from
_frame_start = struct.Struct(">BHI").pack
_content = struct.Struct(">HHQ").pack
_tag_and_flag = struct.Struct(">Q?").unpack_from
_u64 = struct.Struct(">Q").unpack_from


class _Content:
    """A delivery whose content is still arriving."""

    __slots__ = ("_chunks", "_missing", "method", "properties")

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.properties = b""
        self._missing = 0
        self._chunks: list[bytes] = []

    def add(self, kind: int, payload: bytes) -> bool:
        """Take a frame; whether the content is complete."""
        if kind == HEADER:
            self.properties = payload[12:]
            (self._missing,) = _u64(payload, 4)
        else:
            self._missing -= len(payload)
            self._chunks.append(payload)
        return self._missing <= 0

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks)


class Connection(pyamqp.Connection):  # type: ignore[misc]
    """A connection that reads all there is, and sends when told.

    ``deadline`` (``time.monotonic()``) bounds every wait; ``blocked`` says why the broker takes no publications at present,
    or None; ``last_received`` is when bytes last arrived; ``unflushed`` are the channels with acks to write.
    """

    Channel = Channel
    _METHODS: Any

    def __init__(self, deadline: float | None = None, **options: Any) -> None:
        self.deadline = deadline
        self.blocked: str | None = None
        self.last_received = time.monotonic()
        self.unflushed: list[Channel] = []
        self._in = b""
        self._position = 0
        self._partial: dict[int, _Content] = {}
        # py-amqp drops the reason
        self._METHODS = {**self._METHODS, spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s")}
        super().__init__(**options)

    def Transport(self, host: str, connect_timeout: float | None, ssl: Any, *_timeouts: Any, **options: Any) -> Any:  # noqa: N802
        """py-amqp's hook for the socket."""
        return (Tls if ssl else Tcp)(host, connect_timeout=connect_timeout, ssl=ssl, **options)

    def write(self, data: bytes) -> None:
        """Into the buffer; ``flush`` sends it."""
        self._open_transport().out += data

    def write_message(self, channel_id: int, exchange: str, routing_key: str, mandatory: bool, message: Any) -> None:
        """Basic.Publish, content header and body, in frames of the negotiated size."""
        to, key, body, properties = exchange.encode(), routing_key.encode(), message.body, message.raw_properties
        method = b"".join((PUBLISH, bytes((len(to),)), to, bytes((len(key),)), key, b"\x01" if mandatory else b"\x00"))
        parts = [_frame_start(METHOD, channel_id, len(method)), method, b"\xce"]
        parts += (_frame_start(HEADER, channel_id, 12 + len(properties)), _content(BASIC, 0, len(body)), properties, b"\xce")
        room = self.frame_max - FRAME_OVERHEAD
        for start in range(0, len(body), room):
            chunk = body[start : start + room]
            parts += (_frame_start(BODY, channel_id, len(chunk)), chunk, b"\xce")
        self.write(b"".join(parts))

    def flush(self) -> bool:
        """Send what the socket takes now; whether everything is sent."""
        for channel in self.unflushed:
            channel.write_acks()
        self.unflushed.clear()
        sent: bool = self._open_transport().flush()
        return sent

    def pump(self) -> bool:
        """Receive what the socket holds now; whether anything arrived. What arrived waits for ``dispatch``."""
        data = self._open_transport().read()
        if data:
            self.last_received = time.monotonic()
            self._in = self._in[self._position :] + data
            self._position = 0
        return bool(data)

    def drain_events(self, timeout: float | None = None) -> None:
        """Handle what has arrived, at least one event; raises ``TimeoutError`` after ``timeout`` seconds or at the deadline."""
        limits = [] if timeout is None else [time.monotonic() + timeout]
        if self.deadline is not None:
            limits.append(self.deadline)
        while not self.dispatch():
            self.flush()
            self._wait(min(limits, default=None))
            self.pump()

    def _wait(self, limit: float | None) -> None:
        """Until the socket can be read, or written where something waits to be sent."""
        transport = self._open_transport()
        if transport.pending():
            return
        poll = select.poll()
        poll.register(transport.sock, select.POLLIN | select.POLLOUT if transport.out else select.POLLIN)
        milliseconds = None if limit is None else max(0.0, limit - time.monotonic()) * 1000
        if not poll.poll(milliseconds):
            raise TimeoutError("timed out")

    def dispatch(self) -> int:
        """Handle the frames that have arrived completely; how many events they were."""
        events = 0
        while True:
            data, start = self._in, self._position
            if len(data) - start < FRAME_OVERHEAD:
                return events
            kind, channel_id, size = _frame(data, start)
            start += 7
            end = start + size
            if end >= len(data):
                if size > self.frame_max:
                    raise UnexpectedFrame(f"a frame of {size} bytes, over the negotiated {self.frame_max}")
                return events
            if data[end] != FRAME_END:
                raise UnexpectedFrame(f"a frame ends with {data[end]:#x} instead of {FRAME_END:#x}")
            # moved before anything is handled: a handler may wait, and so read further frames
            self._position = end + 1
            if kind == METHOD and data.startswith(DELIVER, start):
                events += self._begin_delivery(data, start + 4, end + 1, channel_id)
            elif kind == METHOD and data.startswith(ACK, start) and self._channel(channel_id).confirming:
                self._channel(channel_id).answer(*_tag_and_flag(data, start + 4))
                events += 1
            elif kind != METHOD and channel_id in self._partial:
                events += self._continue_delivery(kind, channel_id, data[start:end])
            else:
                events += bool(self.on_inbound_frame((kind, channel_id, data[start:end])))
                if self._transport is None:
                    return events

    def _begin_delivery(self, data: bytes, method: int, header: int, channel_id: int) -> bool:
        """Basic.Deliver begins at ``method``, the frame after it at ``header``; whether the delivery is complete.

        Usually its content header and its only body frame have come with it: read here, for speed.
        """
        if len(data) >= header + 19:
            kind, header_channel, size = _frame(data, header)
            body = header + size + FRAME_OVERHEAD
            if kind == HEADER and header_channel == channel_id and len(data) >= body + FRAME_OVERHEAD:
                kind, body_channel, size = _frame(data, body)
                end = body + 7 + size
                if kind == BODY and body_channel == channel_id and end < len(data) and _u64(data, header + 11)[0] == size:
                    self._position = end + 1
                    self._deliver(channel_id, data[method : header - 1], data[header + 19 : body - 1], data[body + 7 : end])
                    return True
        if channel_id in self._partial:
            raise UnexpectedFrame(f"a delivery within a delivery on channel {channel_id}")
        self._partial[channel_id] = _Content(data[method : header - 1])
        return False

    def _continue_delivery(self, kind: int, channel_id: int, payload: bytes) -> bool:
        content = self._partial[channel_id]
        if not content.add(kind, payload):
            return False
        del self._partial[channel_id]
        self._deliver(channel_id, content.method, content.properties, content.body)
        return True

    def _deliver(self, channel_id: int, method: bytes, properties: bytes, body: bytes) -> None:
        """``method`` is consumer tag, delivery tag, redelivered, exchange and routing key."""
        channel = self._channel(channel_id)
        end = 1 + method[0]
        tag = _text(method[1:end])
        delivery_tag, redelivered = _tag_and_flag(method, end)
        callback = channel.callbacks.get(tag)
        if callback is None:
            channel.basic_reject(delivery_tag, requeue=True)
        else:
            callback(Delivered(channel, tag, delivery_tag, redelivered, method[end + 9 :], properties, body))

    def _channel(self, channel_id: int) -> Any:
        try:
            return self.channels[channel_id]
        except KeyError:
            raise UnexpectedFrame(f"a frame for channel {channel_id}, which is not open") from None

    def _open_transport(self) -> Any:
        if self._transport is None:
            raise ConnectionResetError("the connection is closed")
        return self._transport

    def _on_blocked(self, reason: str) -> None:
        self.blocked = reason

    def _on_unblocked(self) -> None:
        self.blocked = None


@lru_cache(maxsize=1024)
def _text(consumer_tag: bytes) -> str:
    return consumer_tag.decode()


class Transport(pyamqp.Transport):  # type: ignore[misc]
    """For ``kombu.Connection(url, transport=Transport)``."""

    Connection = Connection
    implements = pyamqp.Transport.implements.extend(batch_publish=True)


class TlsTransport(pyamqp.SSLTransport):  # type: ignore[misc]
    """The same over TLS."""

    Connection = Connection
    implements = Transport.implements
