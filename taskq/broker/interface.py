"""What taskq asks of a broker. Two implementations: ``amqp`` (RabbitMQ) and ``sqlite`` (the embedded default).

A *session* is the application's side: one connection that publishes and waits until the broker has taken responsibility.
A *consumer* is the supervisor's side: it never blocks, and what it hands out stays the broker's until it is acked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from taskq.message import Message, Publication

if TYPE_CHECKING:
    # Applications that only send to RabbitMQ, on any system, need not have what an SQLite broker needs.
    from taskq.sqlite import Database


class Delivery:
    """A message in a supervisor's custody, undecoded: the supervisor carries bytes.

    ``tag`` is the broker's handle, ``properties`` the message's properties and headers in the broker's own encoding
    (``decode`` of the same broker reads them), ``redelivered`` says that somebody was handed this message before, and
    ``crashes`` counts the processes that died running it since it came into this custody.
    """

    __slots__ = ("body", "crashes", "properties", "queue", "redelivered", "tag")

    def __init__(self, queue: str, tag: Any, properties: bytes, body: bytes, redelivered: bool) -> None:
        self.queue = queue
        self.tag = tag
        self.properties = properties
        self.body = body
        self.redelivered = redelivered
        self.crashes = 0


class Receipt(Protocol):
    """The broker's answer to a publication: not yet there, taken responsibility, or refused."""

    @property
    def confirmed(self) -> bool:
        """Whether the broker has taken responsibility for every message; raises ``BrokerError`` if it refused one."""


class Session(Protocol):
    """One connection of the application's side. Used by one thread at a time."""

    def publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """Declare, publish and wait for every confirmation, until ``time.monotonic()`` is ``deadline``."""

    def depth(self, queue: str) -> int | None:
        """How many messages are ready in the queue, or None where there is no such queue."""

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue; returns how many."""

    def close(self) -> None:
        """Close the connection."""


class Consumer(Protocol):
    """A supervisor's hold on the broker. All methods belong to one thread; none but ``connect`` blocks on the network.

    Any broken connection shows as ``ConnectionLost``; the consumer is then closed and a new one is made. ``database`` is the
    broker's SQLite file, so that results kept in it are part of ``transaction``; None for other brokers.
    """

    database: Database | None

    def connect(self, timeout: float) -> None:
        """Connect, declare the queues and begin to consume; may block for ``timeout`` seconds, so call it in a thread."""

    def fileno(self) -> int:
        """A descriptor that is readable when ``receive`` has something to do."""

    def receive(self) -> list[Delivery]:
        """What has arrived, at most what the window has room for. Also sends what is buffered and reads confirmations."""

    def set_window(self, count: int) -> None:
        """How many unacked deliveries to hold at most; 0 stops the fetching."""

    def transaction(self) -> AbstractContextManager[None]:
        """What is published, acked and requeued inside takes effect at the exit; where the broker can, all or nothing."""

    def publish(self, publications: Iterable[Publication]) -> Receipt:
        """Publish follow-ups; the receipt says when they are confirmed."""

    def ack(self, delivery: Delivery) -> None:
        """The message is done with."""

    def requeue(self, delivery: Delivery) -> None:
        """Give the message back, ready for anyone, where it stood."""

    def tick(self) -> float:
        """Do what is due (heartbeats, delayed messages); returns in how many seconds at the latest to call again."""

    def close(self) -> None:
        """Close the connection; what is unacked goes back to its queue."""


class Decode(Protocol):
    """Reads a delivery's bytes: ``decode(properties, body)``; raises ``MessageError`` for what it cannot read."""

    def __call__(self, properties: bytes, body: bytes, /) -> Message:
        """The message that these bytes are."""
