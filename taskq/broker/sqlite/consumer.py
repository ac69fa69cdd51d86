"""The supervisor's hold on the embedded broker: claims in batches, settles in one transaction.

Invariant: what is published, stored and acked inside one ``transaction`` happens together or not at all; after an
error all is as it was before, in memory too, so that the caller may repeat it. ``DatabaseError`` leaves the consumer usable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty

from kombu import Consumer, Exchange, Queue

from taskq.broker.interface import Delivery
from taskq.broker.sqlite import controls
from taskq.broker.sqlite.channel import Channel
from taskq.broker.sqlite.message import Message
from taskq.broker.sqlite.publication import declare, publish
from taskq.broker.sqlite.session import connect
from taskq.broker.sqlite.transport import Transport
from taskq.config import Settings
from taskq.control import Control
from taskq.message import Publication
from taskq.sqlite import Database


class Committed:
    """The receipt of messages that are a part of the transaction: should it fail, then so does all that relies on them."""

    confirmed = True
    unconfirmed = ()


class SqliteConsumer:
    """A consumer of these queues on the file of ``settings.broker``; fetches nothing before ``set_window``."""

    def __init__(self, settings: Settings, queues: Sequence[str]) -> None:
        #: The open file, so that results can be stored in the same transaction; there after ``connect``.
        self.database: Database | None = None
        self._url = settings.broker
        self._queues = tuple(queues)
        self._window = 0
        self._arrived: list[Delivery] = []
        self._acked: list[int] = []
        self._controls: list[Control] = []

    def connect(self, timeout: float) -> None:
        """Open the file, declare the queues and begin to consume; raises ``DatabaseError``."""
        self._connection = connect(self._url, timeout)
        try:
            self._consume()
        except BaseException:
            # A sign of life that nobody closes would stand for a consumer that is none.
            self._connection.release()
            raise

    def _consume(self) -> None:
        self._channel: Channel = self._connection.channel()
        self._transport: Transport = self._channel.connection
        self.database = self._channel.database
        for name in self._queues:
            declare(self._channel, name)
        queues = [Queue(name, Exchange(""), routing_key=name) for name in self._queues]
        Consumer(self._channel, queues, on_message=self._on_message, auto_declare=False).consume()
        # From here on the pipe is there to be told of what comes after these.
        self._reader = controls.Reader(self.database)
        self._read_controls()

    def fileno(self) -> int:
        """A descriptor that is readable when ``receive`` has something to do."""
        return self._transport.fileno()

    def receive(self) -> list[Delivery]:
        """What is ready, claimed for this consumer, at most what the window has room for."""
        self._flush()
        self._transport.attend(0.0)
        self._read_controls()
        if self._has_room():
            self._channel.basic_qos(prefetch_count=self._window)
            # Empty: woken for a message that another consumer got.
            with suppress(Empty):
                self._channel.drain_events()
        arrived, self._arrived = self._arrived, []
        return arrived

    def set_window(self, count: int) -> None:
        """How many unacked deliveries to hold at most; 0 stops the fetching."""
        self._window = count
        self._ask_for_more()

    def set_paused(self, queues: frozenset[str]) -> None:
        """Claim nothing from these queues, until told otherwise."""
        resumed = self._channel.paused - queues
        self._channel.paused = queues
        if resumed:
            self._channel.hungry = True
            self._ask_for_more()

    def controls(self) -> list[Control]:
        """The control entries since the last call; the first call after ``connect`` returns all that stand."""
        entries, self._controls = self._controls, []
        return entries

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is published and acked inside, and stored on the same ``database``, takes effect together at the exit.

        Raises ``DatabaseError``; then nothing has taken effect.
        """
        acked = len(self._acked)
        try:
            with self._channel.database.transaction():
                yield
                self._channel.settle(self._acked)
        except BaseException:
            del self._acked[acked:]
            raise
        self._acked.clear()
        self._ask_for_more()

    def publish(self, publications: Iterable[Publication]) -> Committed:
        """Publish follow-ups, all or none, in the current transaction, which can go on if this raises."""
        database = self._channel.database
        with database.transaction(), database.part():
            publish(self._channel, publications)
        return Committed()

    def secure(self, delivery: Delivery) -> bool:  # noqa: ARG002  # the interface's signature
        """It is: a row that carries the id of a dead consumer is given back as what it is."""
        return True

    def ack(self, delivery: Delivery) -> None:
        """The message is done with, as of the exit of the transaction or the next ``receive`` or ``tick``."""
        self._acked.append(delivery.tag)

    def tick(self) -> float:
        """Release what the dead held, let due messages go; returns in how many seconds to call again.

        To be called after each ``receive`` too: that may have brought word of a delayed message that is due earlier.
        """
        self._flush()
        seconds = self._transport.perform_duties()
        if self._read_controls():
            self._transport.watch.pipe.ring()
        self._ask_for_more()
        return seconds

    def close(self) -> None:
        """Give everything unacked back at once and close the file."""
        try:
            self._flush()
        finally:
            self._connection.release()

    def _on_message(self, message: Message) -> None:
        self._arrived.append(
            Delivery(
                message.queue,
                message.delivery_tag,
                message.stored_properties,
                message.stored_body,
                message.redelivered,
                orphaned=message.redelivered,
            )
        )

    def _read_controls(self) -> bool:
        """Read what no call of ``controls`` has returned yet, if there may be any; returns whether there was."""
        if not self._transport.controls_due:
            return False
        # Before the look, so that what comes during it is looked for again.
        self._transport.controls_due = False
        entries = self._reader.read()
        self._controls += entries
        return bool(entries)

    def _has_room(self) -> bool:
        return len(self._channel.qos.held) < self._window

    def _ask_for_more(self) -> None:
        """Make the descriptor readable when ``receive`` could claim something: there is room, and maybe a message."""
        if self._channel.hungry and self._has_room():
            self._transport.watch.pipe.ring()

    def _flush(self) -> None:
        if self._acked:
            with self.transaction():
                pass
