"""A line on the embedded broker: a Kombu connection of its own to the file, for messages that nobody keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty
from typing import Any

from taskq.broker.sqlite.channel import TRANSIENT, Channel
from taskq.broker.sqlite.message import Message as Row
from taskq.broker.sqlite.properties import decode
from taskq.broker.sqlite.session import connect
from taskq.broker.sqlite.transport import Transport
from taskq.config import Settings
from taskq.errors import MessageError
from taskq.message import Message


class SqliteLine:
    """See ``taskq.broker.interface.Line``. Raises ``DatabaseError`` where the file is not open in ``timeout`` seconds."""

    def __init__(self, settings: Settings, name: str, timeout: float) -> None:  # noqa: ARG002  # a file has no list of names
        self._connection = connect(settings.broker, timeout)
        self._channel: Channel = self._connection.channel()
        self._transport: Transport = self._channel.connection
        self._declared: set[str] = set()

    def listen(self, exchange: str, kind: str, queue: str, key: str, take: Callable[[Message], None]) -> None:
        """Begin to read a queue of one's own, which goes with whoever reads it, however that ends."""

        def arrive(row: Row) -> None:
            with suppress(MessageError):  # written by other ways than ours
                take(decode(row.stored_properties, row.stored_body))

        # The consumer's sign of life first; then all of it at once, or a queue that nobody reads could be left behind.
        _ = self._transport.owner
        with self._channel.database.transaction(durable=False):
            self._channel.exchange_declare(exchange, kind, durable=kind == "topic")
            self._channel.new_queue(queue, auto_delete=True)
            self._channel.queue_bind(queue, exchange, key)
            self._channel.basic_consume(queue, no_ack=True, callback=arrive, consumer_tag=queue)

    def publish(self, exchange: str, kind: str, key: str, body: bytes, headers: Mapping[str, Any]) -> None:
        """Store it for those who listen; where nobody does, nothing is written."""
        channel = self._channel
        message = channel.prepare_message(body, None, "application/json", "utf-8", dict(headers), {"delivery_mode": TRANSIENT})
        with channel.database.transaction(durable=False):
            if exchange not in self._declared:
                channel.exchange_declare(exchange, kind, durable=kind == "topic")
            channel.basic_publish(message, exchange, key)
        self._declared.add(exchange)

    def listeners(self, exchange: str) -> int | None:
        """How many queues are bound to the exchange: those of the dead, which nobody has missed yet, included."""
        return len(self._channel.get_table(exchange))

    def fileno(self) -> int:
        """Readable when ``turn`` has something to do."""
        return self._transport.fileno()

    def turn(self) -> float:
        """Read what has arrived; returns in how many seconds at the latest to come again."""
        self._transport.attend(0.0)
        seconds = self._transport.perform_duties()
        try:
            while True:
                self._channel.drain_events()
        except Empty:
            return seconds

    def close(self) -> None:
        """Close the file; the queues that were read go."""
        self._connection.release()
