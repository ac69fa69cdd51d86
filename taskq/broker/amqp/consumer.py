"""The supervisor's hold on RabbitMQ: one connection that consumes, another that publishes, neither ever waited for.

They are two, because a broker that is short of memory or disk stops reading from connections that publish, and acks must
still pass. Acks wait in the buffer until the transaction ends or ``receive`` is called.

Invariant: a delivery is settled on the channel that brought it. Everything that breaks a connection, a channel or a
subscription shows as ``ConnectionLost``, and the consumer is then closed.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from amqp.exceptions import PreconditionFailed

from taskq import log
from taskq.broker.amqp.checks import check_delay, check_queue
from taskq.broker.amqp.connection import BROKEN, close, connect
from taskq.broker.amqp.control import Controls, find_ends
from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.outbox import Outbox, Receipt
from taskq.broker.amqp.renewal import RENEW, Renewals, came_from_held
from taskq.broker.amqp.subscription import Subscription
from taskq.broker.amqp.topology import Topology, lines, met, refusal
from taskq.broker.amqp.transport import Connection
from taskq.broker.amqp.window import Window
from taskq.broker.interface import Delivery
from taskq.config import Settings, masked
from taskq.control import Control
from taskq.errors import ConnectionLost, TaskqError, UnsupportedFeature
from taskq.message import Publication
from taskq.sqlite import Database

IDLE = 60.0
#: How long after the last ack the connection stays open, in seconds.
SETTLING = 0.1

logger = log.get_logger("taskq.broker")


class AmqpConsumer:
    """Consumes ``queues``; see ``taskq.broker.interface.Consumer``. What is held for ``renew`` seconds is renewed."""

    database: Database | None = None

    def __init__(self, settings: Settings, queues: Sequence[str], renew: float = RENEW) -> None:
        self._settings = settings
        self._queues = tuple(queues)
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._arrived: list[Delivery] = []
        self._renew = renew
        self._subscriptions: dict[str, Subscription] = {}
        self._window = Window(())
        self._look_at = math.inf
        self._channel: Any = None
        self._outbox: Outbox | None = None
        self._controls: Controls | None = None
        self._held: Renewals | None = None
        self._settled_at = 0.0
        self._heartbeat = 0.0
        self._next_heartbeat = math.inf

    def connect(self, timeout: float) -> None:
        """Connect and declare the queues; fetching begins with ``set_window``. May block for ``timeout`` seconds.

        Raises ``BrokerUnreachable``, ``QueueMismatch``, ``UnsupportedFeature`` and ``ConnectionLost``.
        """
        deadline = time.monotonic() + timeout
        try:
            for name in ("consumer", "follow-ups"):
                self._connections.append(self._open(name, deadline))
            consuming, publishing = self._connections
            topology = self._declare(consuming)
            channel = self._channel = topology.channel
            self._outbox = Outbox(publishing, self._settings)
            self._held = Renewals(channel, topology, self._outbox, self._renew)
            self._read_controls(consuming, deadline)
        except BROKEN as error:
            self.close()
            raise refusal(error, self._settings) from error
        except TaskqError:
            self.close()
            raise
        sources = [(queue, source) for queue in self._queues for source in lines(queue)]
        for number, (queue, source) in enumerate(sources):
            self._subscriptions[f"taskq.{number}"] = Subscription(channel, queue, source, f"taskq.{number}", self._arrive)
        self._window = Window(tuple(self._subscriptions.values()))
        self._heartbeat = min(connection.heartbeat for connection in self._connections)
        self._next_heartbeat = 0.0 if self._heartbeat else math.inf

    def _declare(self, connection: Connection) -> Topology:
        """Declare the queues, and go on with what exists and is only an older declaration of ours."""
        for queue in self._queues:
            # A follow-up of any of its messages may have to wait: better no worker than one that cannot settle.
            check_queue(queue)
            check_delay(queue)
        while True:
            topology = Topology(connection.channel(), self._settings)
            try:
                for queue in self._queues:
                    topology.declare(queue)
                # the answer to one question comes after all the declarations
                topology.channel.queue_declare(self._queues[0], passive=True)
            except PreconditionFailed as error:
                if not met(error, self._settings):
                    raise
            else:
                return topology

    def _read_controls(self, connection: Connection, deadline: float) -> None:
        try:
            ends = find_ends(self._settings, deadline - time.monotonic())
        except UnsupportedFeature as error:
            logger.warning("control_unsupported", error=str(error))
            return
        self._controls = Controls(connection, ends)
        self._controls.read_standing()

    def _open(self, name: str, deadline: float) -> Connection:
        connection = connect(
            self._settings,
            timeout=deadline - time.monotonic(),
            heartbeat=self._settings.heartbeat,
            silence=2 * self._settings.heartbeat,
            name=name,
        )
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        return connection

    def fileno(self) -> int:
        """A descriptor that is readable when ``receive`` has something to do."""
        return self._selector.fileno()

    def receive(self) -> list[Delivery]:
        """What has arrived. Also sends what is buffered and reads confirmations. Raises ``ConnectionLost``."""
        with self._guard():
            for key, _ in self._selector.select(0):
                connection: Connection = key.data
                while connection.pump():
                    connection.dispatch()
            self._flush()
        arrived, self._arrived[:] = self._arrived.copy(), ()
        return arrived

    def set_window(self, count: int) -> None:
        """How many unacked deliveries to hold at most, shared between the queues; 0 stops the fetching."""
        with self._guard():
            self._window.resize(count, len(self._held or ()))
            self._flush()

    def set_paused(self, queues: frozenset[str]) -> None:
        """Fetch nothing from these queues, nor from their lanes, until told otherwise."""
        self._window.paused = queues
        with self._guard():
            self._flush()

    def controls(self) -> list[Control]:
        """The control entries since the last call; the first call returns all that stand."""
        return [] if self._controls is None else self._controls.take()

    def transaction(self) -> AbstractContextManager[None]:
        """What is published and acked inside goes out at the exit."""
        return self._transaction()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._guard():
                self._flush()

    def publish(self, publications: Iterable[Publication]) -> Receipt:
        """Publish follow-ups; the receipt says when they are confirmed."""
        if self._outbox is None:
            raise ConnectionLost(f"the connection to {masked(self._settings.broker)} is closed")
        with self._guard():
            return self._outbox.send(publications)

    def secure(self, delivery: Delivery) -> bool:
        """Whether the delivery has been renewed: only a held queue says for certain that its consumer died."""
        message = self._own(delivery)
        with self._guard():
            secured = self._held is not None and self._held.secure(message)
            self._flush()
        return secured

    def ack(self, delivery: Delivery) -> None:
        """The message is done with."""
        message = self._own(delivery)
        message.ack()
        if self._held is not None:
            self._held.remove(message)
        self._release(message.consumer_tag)
        self._settled_at = time.monotonic()

    def _own(self, delivery: Delivery) -> Delivered:
        message: Delivered = delivery.tag
        if message.channel is not self._channel or self._channel.connection is None:
            raise ConnectionLost(
                f"the connection that brought a message of queue {delivery.queue!r} is gone; it is redelivered"
            )
        return message

    def _arrive(self, subscription: Subscription, message: Delivered) -> None:
        queue, now = subscription.queue, subscription.moved_at
        if self._held is not None:
            self._held.add(message, queue, now)
        orphaned = subscription.source != queue and came_from_held(message)
        redelivered = message.redelivered or orphaned
        self._arrived.append(Delivery(queue, message, message.raw_properties, message.raw_body, redelivered, orphaned=orphaned))

    def _release(self, consumer_tag: str) -> None:
        """The consumer holds one delivery less; a held queue's has no subscription."""
        subscription = self._subscriptions.get(consumer_tag.rpartition(".")[0])
        if subscription is not None:
            subscription.settled(consumer_tag)

    def tick(self) -> float:
        """Send heartbeats and look for the broker's; returns in how many seconds at the latest to call again."""
        now = time.monotonic()
        if now >= min(self._look_at, self._next_heartbeat):
            with self._guard():
                if now >= self._next_heartbeat:
                    self._next_heartbeat = now + self._heartbeat / 2
                    for connection in self._connections:
                        self._beat(connection)
                self._flush()
        return max(0.0, min(self._look_at, self._next_heartbeat, now + IDLE) - now)

    def _beat(self, connection: Connection) -> None:
        # a process that was suspended finds the broker's heartbeats waiting in the socket
        if time.monotonic() - connection.last_received > 2 * self._heartbeat and not connection.pump():
            raise TimeoutError(f"no sign of life for {2 * self._heartbeat:g} s")
        connection.send_heartbeat()
        connection.flush()

    def close(self) -> None:
        """Close the connections; what is unacked goes back to its queue. Waits a second at most for the broker's goodbye."""
        if self._channel is not None and self._channel.connection is not None:
            self._let_settlements_through()
        self._outbox = None
        self._held = None
        self._channel = None
        self._selector.close()
        for connection in self._connections:
            close(connection)
        self._connections.clear()

    def _let_settlements_through(self) -> None:
        """Give RabbitMQ time for what was settled last.

        A channel passes the acks for a quorum queue on some at a time, and forgets the rest when it closes: their tasks would
        run again. It says nothing when they are through, but an answer to a question asked later says that it got that far.
        """
        connection = self._connections[0]
        connection.deadline = time.monotonic() + 1.0
        until = self._settled_at + SETTLING
        with contextlib.suppress(*BROKEN):
            while time.monotonic() < until:
                self._channel.queue_declare(self._queues[0], passive=True)
            if self._held is not None:
                self._held.close()

    def _flush(self) -> None:
        """Do what is due, and send what the sockets take; the descriptor wakes the caller when they take more."""
        if self._held is not None:
            now = time.monotonic()
            for tag in self._held.advance(now):
                self._release(tag)
            self._look_at = min(self._window.adjust(len(self._held), now), self._held.next)
        for connection in self._connections:
            wanted = selectors.EVENT_READ if connection.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
            if self._selector.get_key(connection.sock).events != wanted:
                self._selector.modify(connection.sock, wanted, connection)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turns what a broken connection raises into ``ConnectionLost``."""
        try:
            yield
        except BROKEN as error:
            lost = refusal(error, self._settings)
            if not isinstance(lost, ConnectionLost):
                lost = ConnectionLost(str(lost))
            # what is on its way on the other connection are acks, which hold nothing
            lost.refused = lost.refused and len(self._connections) > 1 and not self._connections[1].connected
            raise lost from error
