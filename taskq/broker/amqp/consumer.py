"""The supervisor's hold on RabbitMQ: one connection that consumes, another that publishes, neither ever waited for.

They are two, because a broker that is short of memory or disk stops reading from connections that publish, and acks must
still pass. Acks and requeues wait in the buffer until the transaction ends or ``receive`` is called.

Invariant: a delivery is settled on the channel that brought it. Everything that breaks a connection, a channel or a
subscription shows as ``ConnectionLost``, and the consumer is then closed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import selectors
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from kombu import Queue

from taskq.broker.amqp.connection import BROKEN, close, connect
from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.outbox import Outbox, Receipt
from taskq.broker.amqp.topology import Topology, check_delay, refusal
from taskq.broker.amqp.transport import Connection
from taskq.broker.interface import Delivery
from taskq.config import Settings, masked
from taskq.errors import ConnectionLost, TaskqError
from taskq.message import Publication
from taskq.sqlite import Database

IDLE = 60.0
#: How long after the last ack the connection stays open, in seconds.
SETTLING = 0.1
#: From this release on, giving back with basic.reject counts against x-delivery-limit, and with basic.nack it does not.
NACK_IS_FREE = (4, 0)


class _Subscription:
    """One queue's consumers on the channel, and how many deliveries they may hold together.

    RabbitMQ fixes a consumer's prefetch when it begins, and what a consumer holds stays its own after it is cancelled. So a
    larger window adds a consumer with the difference; a smaller one cancels them all and begins again with the room that is
    left, as what they held is settled. A tag is never used again: RabbitMQ 3.10 closes the connection with an internal error
    when a tag that holds deliveries of a quorum queue consumes anew.
    """

    def __init__(self, channel: Any, queue: str, name: str, arrived: list[Delivery]) -> None:
        self._queue = Queue(queue, channel=channel)
        self._name = queue
        self._channel = channel
        self._tags = (f"{name}.{number}" for number in itertools.count())
        self._arrived = arrived
        self._wanted = 0
        self._prefetch: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._cancelling: set[str] = set()

    def want(self, window: int) -> None:
        """Hold at most ``window`` deliveries from now on; 0: fetch no more."""
        self._wanted = window
        self.adjust()

    def adjust(self) -> None:
        """Go towards the wanted window, as far as is possible now."""
        if self._cancelling:
            # what is still on its way is not counted yet
            return
        left_over = sum(held for tag, held in self._held.items() if tag not in self._prefetch)
        room = self._wanted - left_over - sum(self._prefetch.values())
        if room < 0 and self._prefetch:
            self._cancelling.update(self._prefetch)
            self._prefetch.clear()
            for tag in tuple(self._cancelling):
                self._channel.request_cancel(tag, functools.partial(self._on_cancelled, tag))
        elif room >= max(1, self._wanted // 4):
            # not for less: each consumer costs the broker something, and the room comes back in small pieces
            tag = next(self._tags)
            self._prefetch[tag] = room
            self._channel.request_prefetch(room)
            self._queue.consume(tag, self._on_message, no_ack=False, nowait=True)

    def settled(self, message: Delivered) -> None:
        """One delivery less is held."""
        self._held[message.consumer_tag] -= 1
        if not self._held[message.consumer_tag]:
            del self._held[message.consumer_tag]

    def _on_cancelled(self, tag: str) -> None:
        self._cancelling.discard(tag)
        self.adjust()

    def _on_message(self, message: Delivered) -> None:
        self._held[message.consumer_tag] += 1
        self._arrived.append(Delivery(self._name, message, message.raw_properties, message.raw_body, message.redelivered))


class AmqpConsumer:
    """Consumes ``queues``; see ``taskq.broker.interface.Consumer``."""

    database: Database | None = None

    def __init__(self, settings: Settings, queues: Sequence[str]) -> None:
        self._settings = settings
        self._queues = tuple(queues)
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._arrived: list[Delivery] = []
        self._subscriptions: dict[str, _Subscription] = {}
        self._channel: Any = None
        self._outbox: Outbox | None = None
        self._nack_is_free = False
        self._settled_at = 0.0
        self._heartbeat = 0.0
        self._next_heartbeat = 0.0

    def connect(self, timeout: float) -> None:
        """Connect and declare the queues; fetching begins with ``set_window``. May block for ``timeout`` seconds.

        Raises ``BrokerUnreachable``, ``QueueMismatch``, ``UnsupportedFeature`` and ``ConnectionLost``.
        """
        deadline = time.monotonic() + timeout
        try:
            for name in ("consumer", "follow-ups"):
                self._connections.append(self._open(name, deadline))
            consuming, publishing = self._connections
            channel = self._channel = consuming.channel()
            topology = Topology(channel, self._settings)
            for queue in self._queues:
                # A follow-up of any of its messages may have to wait: better no worker than one that cannot settle.
                check_delay(queue)
                topology.declare(queue)
            # the answer to one question comes after all the declarations
            channel.queue_declare(self._queues[0], passive=True)
            self._outbox = Outbox(publishing.channel(), self._settings)
        except BROKEN as error:
            self.close()
            raise refusal(error, self._settings) from error
        except TaskqError:
            self.close()
            raise
        for number, queue in enumerate(self._queues):
            self._subscriptions[queue] = _Subscription(channel, queue, f"taskq.{number}", self._arrived)
        self._nack_is_free = consuming.server_version >= NACK_IS_FREE
        self._heartbeat = min(connection.heartbeat for connection in self._connections)

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
        share = max(1, count // len(self._subscriptions)) if count else 0
        with self._guard():
            for subscription in self._subscriptions.values():
                subscription.want(share)
            self._flush()

    def transaction(self) -> AbstractContextManager[None]:
        """What is published, acked and requeued inside goes out at the exit."""
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

    def ack(self, delivery: Delivery) -> None:
        """The message is done with."""
        self._settle(delivery).ack()

    def requeue(self, delivery: Delivery) -> None:
        """Give the message back, ready for anyone, where it stood."""
        message = self._settle(delivery)
        if self._nack_is_free:
            self._channel.basic_nack(message.delivery_tag, requeue=True)
        else:
            message.requeue()

    def _settle(self, delivery: Delivery) -> Delivered:
        message: Delivered = delivery.tag
        if message.channel is not self._channel or self._channel.connection is None:
            raise ConnectionLost(
                f"the connection that brought a message of queue {delivery.queue!r} is gone; it is redelivered"
            )
        self._subscriptions[delivery.queue].settled(message)
        self._settled_at = time.monotonic()
        return message

    def tick(self) -> float:
        """Send heartbeats and look for the broker's; returns in how many seconds at the latest to call again."""
        if not self._heartbeat:
            return IDLE
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat / 2
            with self._guard():
                for connection in self._connections:
                    self._beat(connection)
        return self._next_heartbeat - now

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

    def _flush(self) -> None:
        """Send what the sockets take; the descriptor wakes the caller when they take more."""
        for subscription in self._subscriptions.values():
            subscription.adjust()
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
            raise lost if isinstance(lost, ConnectionLost) else ConnectionLost(str(lost)) from error
