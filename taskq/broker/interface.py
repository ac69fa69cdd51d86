"""What taskq asks of a broker. Two implementations: ``amqp`` (RabbitMQ) and ``sqlite`` (the embedded default).

A *session* is the application's side: one connection that publishes and waits until the broker has taken responsibility.
A *consumer* is the supervisor's side: it never blocks, and what it hands out stays the broker's until it is acked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from taskq.control import Control
from taskq.message import Message, Publication

if TYPE_CHECKING:
    # Applications that only send to RabbitMQ, on any system, need not have what an SQLite broker needs.
    from taskq.sqlite import Database


class Delivery:
    """A message in a supervisor's custody, undecoded: the supervisor carries bytes.

    ``tag`` is the broker's handle, ``properties`` the message's properties and headers in the broker's own encoding
    (``decode`` of the same broker reads them). ``redelivered`` says that the message was handed out before and came back
    although nobody gave it back (what is given back gracefully is published anew), and ``orphaned`` that this is certain to be
    because whoever had it died, or lost its connection. A broker may take back what it has just handed out, RabbitMQ at a
    cancel for example; then the message is redelivered, and not orphaned.
    """

    __slots__ = ("body", "orphaned", "properties", "queue", "redelivered", "tag")

    def __init__(
        self, queue: str, tag: Any, properties: bytes, body: bytes, redelivered: bool, *, orphaned: bool = False
    ) -> None:
        self.queue = queue
        self.tag = tag
        self.properties = properties
        self.body = body
        self.redelivered = redelivered
        self.orphaned = orphaned


class Receipt(Protocol):
    """The broker's answer to a publication: not yet there, taken responsibility, or refused."""

    @property
    def confirmed(self) -> bool:
        """Whether the broker has taken responsibility for every message; raises ``BrokerError`` if it refused one."""


class Session(Protocol):
    """One connection of the application's side. Used by one thread at a time."""

    @property
    def database(self) -> Database | None:
        """The broker's SQLite file, so that a publication can be part of its transaction; None for other brokers."""

    def publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """Declare, publish and wait for every confirmation, until ``time.monotonic()`` is ``deadline``."""

    def depth(self, queue: str) -> int | None:
        """How many messages are ready in the queue, or None where there is no such queue."""

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue; returns how many."""

    def holds(self, task_id: str) -> bool | None:
        """Whether a message of this task waits, or is in a worker's custody; None where the broker cannot tell."""

    def letters(self, queue: str) -> Letters:
        """Open the queue to look at its ready messages and to take some out."""

    def control(self, control: Control, deadline: float) -> None:
        """Keep the entry durably and hand it to every worker, now and later; raises as ``publish``."""

    def controls(self) -> list[Control]:
        """The entries that stand, oldest first."""

    def close(self) -> None:
        """Close the connection."""


class Replies(Protocol):
    """The queue that the replies to a process' calls come back to, and whoever reads it.

    It outlives its connection for a while: what comes in between is read when there is a new one.
    """

    name: str

    def close(self) -> None:
        """Read no more, and delete the queue."""


class TakeReply(Protocol):
    """Takes a reply; called in a thread of its own, and must not raise."""

    def __call__(self, task_id: str, body: bytes, /) -> None:
        """The reply to the call with this id."""


class Letters(Protocol):
    """The ready messages of a queue, most often of dead letters. What is neither moved nor removed stays in the queue.

    Belongs to its session's thread. Iterate it once.
    """

    def __iter__(self) -> Iterator[tuple[Any, Message]]:
        """Each message that was there when the queue was opened, oldest first, with a handle for the methods below."""

    def move(self, handle: Any, publication: Publication) -> bool:
        """Publish, and remove the original once the copy is confirmed; where the broker can, in one transaction.

        False, and nothing is published, where somebody else was faster and the message is gone.
        """

    def remove(self, handle: Any) -> bool:
        """Delete the message; False where somebody else was faster."""

    def close(self) -> None:
        """Let go of the queue; what was removed is gone for good."""


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

    def set_paused(self, queues: frozenset[str]) -> None:
        """Fetch nothing from these queues, until told otherwise."""

    def controls(self) -> list[Control]:
        """The control entries since the last call; the first call after ``connect`` returns all that stand.

        ``fileno`` is readable when another one comes; it is read by ``receive``.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """What is published and acked inside takes effect at the exit; where the broker can, all or nothing."""

    def publish(self, publications: Iterable[Publication]) -> Receipt:
        """Publish follow-ups; the receipt says when they are confirmed."""

    def secure(self, delivery: Delivery) -> bool:
        """Whether the delivery will come back orphaned should we die now; where it would not, see to it, and ask again."""

    def ack(self, delivery: Delivery) -> None:
        """The message is done with."""

    def tick(self) -> float:
        """Do what is due (heartbeats, delayed messages); returns in how many seconds at the latest to call again."""

    def close(self) -> None:
        """Close the connection; what is unacked goes back to its queue."""


class Decode(Protocol):
    """Reads a delivery's bytes: ``decode(properties, body)``; raises ``MessageError`` for what it cannot read."""

    def __call__(self, properties: bytes, body: bytes, /) -> Message:
        """The message that these bytes are."""
