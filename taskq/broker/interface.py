"""What taskq asks of a broker. Two implementations: ``amqp`` (RabbitMQ) and ``sqlite`` (the embedded default).

A *session* is the application's side: one connection that publishes and waits until the broker has taken responsibility.
A *consumer* is the supervisor's side: it never blocks, and what it hands out stays the broker's until it is acked.
A *line* is for what nobody keeps, either side's: remote control and events, gone where nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

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


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker knows of a queue; None stands for what it does not tell.

    ``ready`` are the messages that wait, ``held`` those in workers' custody, ``delayed`` those whose time has not come.
    ``oldest`` is for how many seconds the oldest ready one has waited. ``consumers`` are those that fetch from the queue: each
    a worker, or on RabbitMQ a part of one. That does not tell of workers that are too busy to fetch, nor that there are none.
    """

    ready: int
    consumers: int | None = None
    held: int | None = None
    delayed: int | None = None
    oldest: float | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a task, where the broker has it.

    ``ahead`` is how many have their turn before it, ``due`` when a delayed one is ready, in seconds since the epoch, ``holder``
    the process id of the worker that has it, where the kernel tells.
    """

    queue: str
    state: Literal["ready", "held", "delayed"]
    message: Message
    ahead: int | None = None
    due: float | None = None
    holder: int | None = None


class Receipt(Protocol):
    """The broker's answer to some publications: not yet there, taken responsibility, or refused."""

    @property
    def unconfirmed(self) -> Sequence[Publication]:
        """Those that it has not taken responsibility for."""

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

    def oldest(self, queue: str) -> float | None:
        """How long the queue's oldest ready message has waited, in seconds; None where nobody knows, or there is none."""

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue; returns how many."""

    def holds(self, task_id: str) -> bool | None:
        """Whether a message of this task waits, or is in a worker's custody; None where the broker cannot tell."""

    def find(self, task_id: str) -> list[Found] | None:
        """Where the messages of this task are, dead letters too; None where the broker cannot look for one."""

    def stats(self, queue: str) -> QueueStats | None:
        """What there is to know of the queue, or None where there is no such queue."""

    def verify(self, queue: str) -> tuple[str, ...]:
        """Raises ``QueueMismatch`` where the queue, or what belongs to it, exists with other arguments than ours.

        Returns those that are used although they lack the delivery limit that they would be declared with.
        """

    def delete(self, queue: str) -> None:
        """Delete the queue with what belongs to it and is in it, if there is any."""

    def server(self) -> tuple[str, tuple[int, ...]]:
        """The broker's product, and its version."""

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


class Line(Protocol):
    """A connection for messages that nobody keeps. Belongs to one thread; only opening and ``listen`` wait for the broker.

    Whatever breaks it shows as ``BrokerError``; it is then closed and a new one is made. ``kind`` is the exchange's type:
    fanout and direct ones are transient, topic ones durable, as Celery declares them.
    """

    def listen(self, exchange: str, kind: str, queue: str, key: str, take: Callable[[Message], None]) -> None:
        """Have ``take``, which must not raise, called inside ``turn`` for what is published to the exchange.

        The queue is nobody else's, and goes with the line.
        """

    def publish(self, exchange: str, kind: str, key: str, body: bytes, headers: Mapping[str, Any]) -> None:
        """Publish JSON, for whoever listens."""

    def listeners(self, exchange: str) -> int | None:
        """How many listen to the exchange, at most; None where the broker does not say."""

    def fileno(self) -> int:
        """A descriptor that is readable when ``turn`` has something to do."""

    def turn(self) -> float:
        """Read what has arrived, send what waits, do what is due; returns in how many seconds at the latest to call again."""

    def close(self) -> None:
        """Close the connection."""


class Check(Protocol):
    """Finds out what a broker would refuse, without asking it, so that it is refused where somebody can mend it."""

    def __call__(self, publication: Publication, /) -> None:
        """Raises ``ConfigurationError`` or ``MessageTooLarge`` for what this broker, set up as it is, could never carry."""


class Decode(Protocol):
    """Reads a delivery's bytes: ``decode(properties, body)``; raises ``MessageError`` for what it cannot read."""

    def __call__(self, properties: bytes, body: bytes, /) -> Message:
        """The message that these bytes are."""
