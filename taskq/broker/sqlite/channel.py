"""A Kombu channel on SQLite: routing, publishing, claiming, acknowledging, each a transaction on the rows.

Owns the meaning of the tables messages, queues, exchanges and bindings. Invariant: a message is a row from publish to ack, and
while a consumer has it, the row carries the consumer's id: nothing lives in memory only. The delivery tag is the row's id.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from queue import Empty
from typing import TYPE_CHECKING, Any

from amqp.exceptions import NotFound
from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.virtual.base import NotEquivalentError
from kombu.utils.uuid import uuid

from taskq.broker.sqlite.message import Message
from taskq.broker.sqlite.properties import encode
from taskq.liveness import wake
from taskq.sqlite import Database

if TYPE_CHECKING:
    from taskq.broker.sqlite.transport import Transport

#: The priority of a row that goes ahead of all others; those of messages are 0 to 9.
FIRST = 10
#: The delivery mode of a message that need not survive the loss of power, so that nobody waits for the disk.
TRANSIENT = 1
#: How many messages to claim at once where the consumer sets no prefetch count.
_BATCH = 100

# Whatever somebody else has written there comes as bytes: text that is no UTF-8 would fail the claim of all the others.
_CLAIM = """
update messages set owner = ? where id in (
    select id from messages where queue = ? and owner is null and due is null order by priority desc, id limit ?
) returning -priority, id, redelivered, cast(properties as blob), cast(body as blob)
"""
# Where nobody will acknowledge, the delivery is the end of the message.
_TAKE = """
delete from messages where id in (
    select id from messages where queue = ? and owner is null and due is null order by priority desc, id limit ?
) returning -priority, id, redelivered, cast(properties as blob), cast(body as blob)
"""
# The owner is compared as well, since a consumer that was taken for dead has lost its messages to others.
_ACK = "delete from messages where id = ? and owner = ?"
_RELEASE = "update messages set owner = null, redelivered = 1 where id = ? and owner = ?"


class QoS(virtual.QoS):  # type: ignore[misc]
    """The messages that a channel holds unacked, by tag, in the order of delivery; the rows say the same."""

    def __init__(self, channel: Channel, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count
        self.held: dict[int, str] = {}

    def can_consume(self) -> bool:
        """Whether the prefetch count leaves room."""
        return self.can_consume_max_estimate() > 0

    def can_consume_max_estimate(self) -> int:
        """How many messages there is room for."""
        return max(self.prefetch_count - len(self.held), 0) if self.prefetch_count else _BATCH

    def append(self, message: Message, delivery_tag: int) -> None:
        """Hold the message."""
        self.held[delivery_tag] = message.queue

    def get(self, delivery_tag: int) -> str:
        """The queue that the message came from."""
        return self.held[delivery_tag]

    def ack(self, delivery_tag: int) -> None:
        """See ``Channel.settle``."""
        self.channel.settle(acked=[delivery_tag])

    def reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """See ``Channel.settle``; without ``requeue`` the message is deleted."""
        self.channel.settle(**{"requeued" if requeue else "acked": [delivery_tag]})

    def restore_unacked(self) -> list[Any]:
        """Give everything back."""
        self.channel.settle(requeued=list(self.held))
        return []

    def restore_unacked_once(self, **_: Any) -> None:
        """Give everything back when the channel closes."""
        if self.held:
            self.restore_unacked()


class Channel(virtual.Channel):  # type: ignore[misc]
    """A channel of Kombu's. The property ``delay`` of a published message holds it back for so many seconds."""

    QoS = QoS
    connection: Transport
    supports_fanout = True
    body_encoding = None
    from_transport_options = ("deadletter_queue",)

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.database: Database = connection.database
        #: Whether a queue may hold more than was last claimed.
        self.hungry = True
        #: Queues to claim nothing from, though they are consumed.
        self.paused: frozenset[str] = frozenset()
        self._consuming: dict[str, tuple[bool, Callable[[Message], Any]]] = {}
        self._claimed: deque[Message] = deque()

    # Exchanges, queues and bindings

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str | None = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        passive: bool = False,
        **_: Any,
    ) -> None:
        """Make the exchange, or with ``passive`` raise ``ChannelError`` where there is none."""
        kind = type or "direct"
        exchange = exchange or f"amq.{kind}"
        options = json.dumps([bool(durable), bool(auto_delete), arguments or {}], sort_keys=True)
        with self.database.transaction():
            if not passive:
                self._check_exchange_type(exchange, kind)
                self.database.execute("insert or ignore into exchanges values (?, ?, ?)", (exchange, kind, options))
            rows = self.database.execute("select type, options from exchanges where name = ?", (exchange,))
        if not rows:
            raise not_found("exchange", exchange, "Channel.exchange_declare")
        if not passive and rows[0] != (kind, options):
            raise NotEquivalentError(f"exchange {exchange!r} exists with another type, durability or other arguments")

    def _check_exchange_type(self, exchange: str, kind: str) -> None:
        if kind not in self.exchange_types:
            raise ChannelError(
                f"COMMAND_INVALID - exchange {exchange!r} has the type {kind!r}; SQLite has {', '.join(self.exchange_types)}",
                (40, 10),
                "Channel.exchange_declare",
                "503",
            )

    def exchange_delete(self, exchange: str, if_unused: bool = False, **_: Any) -> None:
        """Delete the exchange and its bindings, with ``if_unused`` only where it has none."""
        with self.database.transaction():
            if not (if_unused and self.get_table(exchange)):
                self.database.execute("delete from exchanges where name = ?", (exchange,))

    def get_exchanges(self) -> list[str]:
        """The names of all exchanges."""
        return [name for (name,) in self.database.execute("select name from exchanges")]

    def get_table(self, exchange: str) -> list[tuple[str, str | None, str]]:
        """The bindings of the exchange: routing key, pattern and queue."""
        return self.database.execute("select routing_key, pattern, queue from bindings where exchange = ?", (exchange,))

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        """What routes for this exchange; one that was never declared counts as ``default``."""
        rows = self.database.execute("select type from exchanges where name = ?", (exchange,))
        return self.exchange_types[rows[0][0] if rows else default]

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> queue_declare_ok_t:
        """Make the queue, or with ``passive`` raise ``ChannelError`` where there is none."""
        queue = queue or f"amq.gen-{uuid()}"
        with self.database.transaction():
            if not passive:
                self._new_queue(queue, **kwargs)
            elif not self._has_queue(queue):
                raise not_found("queue", queue, "Channel.queue_declare")
            ((consumers,),) = self.database.execute("select count(*) from consumers where queue = ?", (queue,))
            return queue_declare_ok_t(queue, self._size(queue), consumers)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any) -> int:
        """Delete the queue with its bindings and messages, claimed ones included; returns how many were ready."""
        with self.database.transaction():
            size = self._size(queue)
            used = self.database.execute("select 1 from consumers where queue = ? limit 1", (queue,))
            if (if_empty and size) or (if_unused and used):
                return 0
            self.database.execute("delete from queues where name = ?", (queue,))
        return size

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **_: Any
    ) -> None:
        """Bind the queue to the exchange, which must exist."""
        exchange = exchange or "amq.direct"
        with self.database.transaction():
            if exchange not in self.get_exchanges():
                raise not_found("exchange", exchange, "Channel.queue_bind")
            key, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key or "", arguments)
            self.database.execute("insert or ignore into bindings values (?, ?, ?, ?)", (exchange, queue, key, pattern))

    def queue_unbind(self, queue: str, exchange: str | None = None, routing_key: str = "", **_: Any) -> None:
        """Remove the binding."""
        with self.database.transaction():
            self.database.execute(
                "delete from bindings where exchange = ? and queue = ? and routing_key = ?",
                (exchange or "amq.direct", queue, routing_key or ""),
            )

    def list_bindings(self) -> list[tuple[str, str, str]]:
        """All bindings: queue, exchange and routing key."""
        return self.database.execute("select queue, exchange, routing_key from bindings")

    def new_queue(self, queue: str, auto_delete: bool = False, exclusive: bool = False, **_: Any) -> None:
        """Make the queue. Unlike ``queue_declare`` it does not count what is ready, which takes longer the more there is."""
        with self.database.transaction():
            self.database.execute("insert or ignore into queues values (?, ?)", (queue, bool(auto_delete or exclusive)))

    _new_queue = new_queue

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return bool(self.database.execute("select 1 from queues where name = ?", (queue,)))

    def _size(self, queue: str) -> int:
        rows = self.database.execute(
            "select count(*) from messages where queue = ? and owner is null and due is null", (queue,)
        )
        return int(rows[0][0])

    def depth(self, queue: str) -> int | None:
        """How many messages are ready in the queue, or None where there is no such queue."""
        with self.database.transaction(durable=False):
            return self._size(queue) if self._has_queue(queue) else None

    def _purge(self, queue: str) -> int:
        with self.database.transaction():
            size = self._size(queue)
            self.database.execute("delete from messages where queue = ? and owner is null and due is null", (queue,))
        return size

    # Publishing

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **_: Any) -> None:
        """Store the message for every queue that the exchange routes it to.

        As with every virtual transport, the default exchange makes the queue that it does not find, and the others drop what no
        queue is bound for.
        """
        message["properties"]["delivery_info"].update(exchange=exchange, routing_key=routing_key)
        with self.database.transaction(durable=message["properties"].get("delivery_mode") != TRANSIENT):
            for queue in self._lookup(exchange, routing_key):
                if not exchange:
                    self._new_queue(queue)
                self.put(queue, message)

    def put(self, queue: str, message: dict[str, Any], *, first: bool = False) -> None:
        """Store a prepared message in this queue; inside a transaction.

        With ``first`` it goes ahead of what waits there, but for those that came the same way before; a delayed message has its
        turn still to come, so that it waits like any other.
        """
        body, properties = message["body"], message["properties"]
        delay = float(properties.get("delay") or 0.0)
        priority = 0 if properties.get("priority") is None else self._get_message_priority(message)
        self.database.execute(
            "insert into messages (queue, priority, due, properties, body) values (?, ?, ?, ?, ?)",
            (
                queue,
                FIRST if first and delay <= 0 else priority,
                time.time() + delay if delay > 0 else None,
                encode(message),
                body.encode() if isinstance(body, str) else body,
            ),
        )
        if delay > 0:
            self.database.after_commit(self.connection.announce_delayed)
        else:
            wake(self.database, queue)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """What ``Producer.batch()`` of Kombu 5.7 asks for."""
        return PublishBatch(self, max_size)

    # Consuming

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Message], Any], consumer_tag: str, **_: Any) -> None:
        """Consume from the queue; a second consumer of the same queue on this channel replaces the first."""
        self._tag_to_queue[consumer_tag] = queue
        self._consumers.add(consumer_tag)
        self._consuming[queue] = no_ack, callback
        self.connection.add_consumer(queue)
        self.hungry = True

    def basic_cancel(self, consumer_tag: str) -> None:
        """Consume no more; what is unacked stays with this channel."""
        if consumer_tag not in self._consumers:
            return
        self._consumers.remove(consumer_tag)
        queue = self._tag_to_queue.pop(consumer_tag)
        if queue in self._tag_to_queue.values():
            return
        del self._consuming[queue]
        undelivered = [message for message in self._claimed if message.queue == queue]
        self._claimed = deque(message for message in self._claimed if message.queue != queue)
        self.settle(requeued=[message.delivery_tag for message in undelivered])
        self.connection.remove_consumer(queue)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Message | None:
        """Claim one message, or return None."""
        messages = self._claim(queue, 1, no_ack)
        return messages[0] if messages else None

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """The message is done with, with ``multiple`` all those delivered before it as well."""
        tags = [delivery_tag]
        if multiple:
            held = list(self.qos.held)
            tags = held[: held.index(delivery_tag) + 1]
        self.settle(acked=tags)

    def settle(self, acked: Sequence[int] = (), requeued: Sequence[int] = ()) -> None:
        """End the custody of these messages in one transaction, which is durable if one of them is acked."""
        if not acked and not requeued:
            return
        owner, held = self.connection.owner, self.qos.held
        with self.database.transaction(durable=bool(acked)):
            self.database.execute_many(_ACK, [(tag, owner) for tag in acked])
            self.database.execute_many(_RELEASE, [(tag, owner) for tag in requeued])
            for queue in {held[tag] for tag in requeued if tag in held}:
                wake(self.database, queue)
            self.database.after_commit(self._forget, tuple(acked), tuple(requeued))

    def _forget(self, *settled: Iterable[int]) -> None:
        for tags in settled:
            for tag in tags:
                self.qos.held.pop(tag, None)

    def drain_events(self, **_: Any) -> None:
        """Hand what can be claimed to the callbacks; raises ``queue.Empty`` where that is nothing."""
        if not self._claimed and self.hungry:
            self._claim_for_consumers()
        if not self._claimed:
            raise Empty
        # One by one: should a callback raise, the rest is still here for the next call.
        while self._claimed:
            message = self._claimed.popleft()
            self._consuming[message.queue][1](message)

    def message_to_python(self, raw_message: Message) -> Message:
        """The message as it is; asked for by Kombu's consumer."""
        return raw_message

    def _claim_for_consumers(self) -> None:
        more = False
        for queue in [queue for queue in self._consuming if queue not in self.paused]:
            room = self.qos.can_consume_max_estimate()
            if not room:
                more = True
                break
            no_ack, callback = self._consuming.pop(queue)
            # To the end of the line, so that a busy queue does not starve the others.
            self._consuming[queue] = no_ack, callback
            # One at a time where the claim is the end of the message: what is not delivered yet must still be a row.
            limit = 1 if no_ack else room
            messages = self._claim(queue, limit, no_ack)
            self._claimed.extend(messages)
            more = more or len(messages) == limit
        self.hungry = more

    def _claim(self, queue: str, limit: int, no_ack: bool) -> list[Message]:
        parameters = (queue, limit) if no_ack else (self.connection.owner, queue, limit)
        # A claim that the loss of power undoes is a message not delivered yet: no fsync needed.
        with self.database.transaction(durable=False):
            rows = self.database.execute(_TAKE if no_ack else _CLAIM, parameters)
        rows.sort()
        if not no_ack:
            self.qos.held.update((row[1], queue) for row in rows)
        return [Message(self, queue, tag, bool(again), properties, body) for _, tag, again, properties, body in rows]

    def close(self) -> None:
        """Stop consuming and give everything unacked back."""
        if not self.closed and self._claimed:
            # The unacked ones go back to their queue below; of these nobody has heard yet.
            self._claimed.clear()
        super().close()


class PublishBatch:
    """Prepared messages that are published in one transaction; see ``kombu.messaging.Producer.batch``."""

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._messages: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        """Keep the message for the next flush, which is now when the batch is full."""
        self._messages.append((message, kwargs))
        if len(self._messages) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Publish what is kept; all of it or, when this raises, none."""
        with self.channel.database.transaction():
            for message, kwargs in self._messages:
                self.channel.basic_publish(message, **kwargs)
        self._messages.clear()

    def discard(self) -> None:
        """Forget what is kept."""
        self._messages.clear()

    close = discard


def not_found(kind: str, name: str, method: str) -> NotFound:
    """What AMQP answers when something passive-declared or bound does not exist."""
    return NotFound(f"NOT_FOUND - no {kind} {name!r}; declare it first", (50, 10), method, 404)
