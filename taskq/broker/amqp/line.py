"""A line on RabbitMQ: a connection of its own, for messages that nobody keeps. It waits for nothing but its beginning."""

from __future__ import annotations

import contextlib
import math
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taskq.broker.amqp.connection import BROKEN, close, connect
from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.properties import decode
from taskq.broker.amqp.topology import refusal
from taskq.config import Settings
from taskq.errors import MessageError
from taskq.message import Message

#: How long the line may be quiet on our side where there are no heartbeats, in seconds.
IDLE = 60.0
TRANSIENT = 1


class AmqpLine:
    """See ``taskq.broker.interface.Line``. Raises ``BrokerUnreachable`` after ``timeout`` seconds."""

    def __init__(self, settings: Settings, name: str, timeout: float) -> None:
        self._settings = settings
        self._connection = connect(
            settings, timeout=timeout, heartbeat=settings.heartbeat, silence=2 * settings.heartbeat, name=name
        )
        with self._guard():
            self._channel = self._connection.channel()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._connection.sock, selectors.EVENT_READ)
        self._declared: set[str] = set()
        self._heartbeat = float(self._connection.heartbeat)
        self._beat_at = time.monotonic() + self._heartbeat / 2 if self._heartbeat else math.inf

    def listen(self, exchange: str, kind: str, queue: str, key: str, take: Callable[[Message], None]) -> None:
        """Begin to read a queue of one's own; waits for the broker, until the timeout given at the beginning."""

        def arrive(message: Delivered) -> None:
            with contextlib.suppress(MessageError):  # anybody may write to the exchange; what cannot be read is nobody's
                take(decode(message.raw_properties, message.raw_body))

        with self._guard():
            self._declare(exchange, kind)
            # Exclusive, because RabbitMQ 4 knows no other transient queues.
            self._channel.queue_declare(queue, durable=False, exclusive=True, auto_delete=True, nowait=True)
            self._channel.queue_bind(queue, exchange, key, nowait=True)
            self._channel.basic_consume(queue, no_ack=True, callback=arrive)

    def publish(self, exchange: str, kind: str, key: str, body: bytes, headers: Mapping[str, Any]) -> None:
        """Send what the socket takes; ``turn`` sends the rest."""
        with self._guard():
            self._declare(exchange, kind)
            message = self._channel.prepare_message(
                body, None, "application/json", "utf-8", dict(headers), {"delivery_mode": TRANSIENT}
            )
            self._connection.write_message(self._channel.channel_id, exchange, key, False, message)
            self._flush()

    def listeners(self, exchange: str) -> int | None:  # noqa: ARG002  # the interface's signature
        """RabbitMQ tells nobody who listens."""
        return None

    def fileno(self) -> int:
        """Readable when ``turn`` has something to do."""
        return self._selector.fileno()

    def turn(self) -> float:
        """Read what has arrived, send what waits; returns in how many seconds at the latest to come again."""
        with self._guard():
            while self._connection.pump():
                self._connection.dispatch()
            now = time.monotonic()
            if now >= self._beat_at:
                self._beat_at = now + self._heartbeat / 2
                if now - self._connection.last_received > 2 * self._heartbeat:
                    raise TimeoutError(f"no sign of life for {2 * self._heartbeat:g} s")
                self._connection.send_heartbeat()
            self._flush()
        return max(0.0, min(self._beat_at - now, IDLE))

    def close(self) -> None:
        """Close the connection; waits for the broker's goodbye for at most a second."""
        self._selector.close()
        close(self._connection)

    def _flush(self) -> None:
        wanted = selectors.EVENT_READ if self._connection.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(self._connection.sock, wanted)

    def _declare(self, exchange: str, kind: str) -> None:
        if exchange not in self._declared:
            self._channel.exchange_declare(exchange, kind, durable=kind == "topic", auto_delete=False, nowait=True)
            self._declared.add(exchange)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """After what a broken connection raises, the line is of no further use."""
        try:
            yield
        except BROKEN as error:
            self._connection.collect()
            raise refusal(error, self._settings) from error
