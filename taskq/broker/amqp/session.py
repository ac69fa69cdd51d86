"""The application's side of RabbitMQ: one connection that publishes and waits for the confirmations.

After an error a session is of no further use; the publisher opens another one.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from amqp.exceptions import NotFound, PreconditionFailed

from taskq.broker.amqp import control as streams
from taskq.broker.amqp.checks import check_name, check_priority
from taskq.broker.amqp.connection import BROKEN, close, connect
from taskq.broker.amqp.letters import AmqpLetters
from taskq.broker.amqp.outbox import Outbox, Receipt
from taskq.broker.amqp.topology import company, lacks_limit, lines, queue_arguments, refusal
from taskq.broker.interface import Found, Letters, QueueStats
from taskq.config import Settings, masked
from taskq.control import Control
from taskq.errors import BrokerError, ConnectionLost, PublishRejected, PublishTimeout, UnsupportedFeature
from taskq.message import Publication

T = TypeVar("T")
#: Seconds between a rejection and the next try.
PAUSE = 0.05


class AmqpSession:
    """Connects at once, for at most ``timeout`` seconds. Raises ``BrokerUnreachable``."""

    database = None

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._settings = settings
        self._url = masked(settings.broker)
        self._has_streams = False
        # no heartbeats: nobody sends any between two calls
        self._connection = connect(
            settings, timeout=timeout, heartbeat=0, silence=settings.publish_timeout / 2, name="publisher"
        )
        try:
            self._outbox = Outbox(self._connection, settings)
        except BROKEN as error:
            self._connection.collect()
            raise refusal(error, settings) from error

    def publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """Declare, publish and wait for every confirmation, until ``time.monotonic()`` is ``deadline``.

        Raises ``UnsupportedFeature`` and ``MessageTooLarge`` before anything is sent, ``PublishTimeout``, ``Unroutable``,
        ``PublishRejected``, ``QueueMismatch`` and ``ConnectionLost``.
        """
        for publication in publications:
            check_priority(publication, self._settings)
        self._greet(deadline)
        receipt = Receipt(publications, self._url)
        try:
            receipt = self._outbox.send(publications)
            while not self._confirmed(receipt, deadline):
                if receipt.rejected and not receipt.unanswered:
                    receipt = self._outbox.send(receipt.rejected)
                self._connection.drain_events()
        except TimeoutError as error:
            self._connection.collect()
            raise PublishTimeout(self._timed_out(len(receipt.unanswered))) from error
        except BROKEN as error:
            broken = self._broken(error)
            if isinstance(broken, ConnectionLost):
                broken.unconfirmed = tuple(receipt.unanswered.values())
                if broken.refused:
                    raise PublishRejected(f"{self._url} takes no such message: {error}", passing=False) from error
            raise broken from error

    def depth(self, queue: str) -> int | None:
        """How many messages are ready in the queue and its lane, or None where there is no such queue."""
        counts = [self._count(line) for line in lines(queue)]
        return None if counts[-1] is None else sum(count or 0 for count in counts)

    def oldest(self, queue: str) -> float | None:  # noqa: ARG002  # the interface's signature
        """RabbitMQ shows no message without handing it out, and then it has lost its place in the queue."""
        return None

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue and its lane; returns how many. A queue that does not exist holds none."""
        return sum(self._ask(line, lambda channel, line: int(channel.queue_purge(line))) or 0 for line in lines(queue))

    def holds(self, task_id: str) -> bool | None:  # noqa: ARG002  # the interface's signature
        """RabbitMQ knows messages by their queue alone."""
        return None

    def find(self, task_id: str) -> list[Found] | None:  # noqa: ARG002  # the interface's signature
        """RabbitMQ knows messages by their queue alone."""
        return None

    def stats(self, queue: str) -> QueueStats | None:
        """How many messages are ready in the queue and its lane, and how many consume. RabbitMQ tells no more.

        A worker whose slots are all taken has cancelled its consumers, so that none is no sign that there is no worker.
        """
        answers = [self._ask(line, lambda channel, line: channel.queue_declare(line, passive=True)) for line in lines(queue)]
        if answers[-1] is None:
            return None
        return QueueStats(
            ready=sum(answer.message_count for answer in answers if answer is not None),
            consumers=answers[-1].consumer_count or None,
        )

    def verify(self, queue: str) -> tuple[str, ...]:
        """Raises ``QueueMismatch`` where the queue or what belongs to it exists with other arguments; declares nothing new.

        Returns those that are used as they are, without the delivery limit that they would be declared with.
        """
        lacking = []
        for name in company(queue):
            mismatch = None if self._count(name) is None else self._ask(name, self._mismatch)
            if mismatch is not None:
                if lacks_limit(mismatch) is None:
                    raise refusal(mismatch, self._settings) from mismatch
                lacking.append(name)
        return tuple(lacking)

    def _mismatch(self, channel: Any, queue: str) -> PreconditionFailed | None:
        arguments = queue_arguments(queue, self._settings)
        try:
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        except PreconditionFailed as error:
            return error
        return None

    def delete(self, queue: str) -> None:
        """Delete the queue, its lane and its dead-letter queue with what is in them."""
        for name in company(queue):
            self._ask(name, lambda channel, name: channel.queue_delete(name))

    def server(self) -> tuple[str, tuple[int, ...]]:
        """As the server introduced itself."""
        named = self._connection.server_properties
        numbers = re.findall(r"\d+", str(named.get("version", "")))
        return str(named.get("product", "AMQP")), tuple(map(int, numbers[:3]))

    def letters(self, queue: str) -> Letters:
        """Open the queue to look at its ready messages and to take some out; there are none in one that does not exist.

        Raises ``ConnectionLost``, as do the methods of what is returned.
        """

        def publish(publication: Publication) -> None:
            self.publish([publication], time.monotonic() + self._settings.publish_timeout)

        def limited() -> bool:
            mismatch = self._ask(queue, self._mismatch)
            return mismatch is None or lacks_limit(mismatch) is None

        return AmqpLetters(self._connection, queue, self._count(queue) or 0, publish, self._guard, limited)

    def control(self, control: Control, deadline: float) -> None:
        """Keep the entry durably and hand it to every worker, now and later.

        Raises as ``publish``, and ``UnsupportedFeature`` where the broker has no streams.
        """
        if not self._has_streams:
            streams.find_ends(self._settings, deadline - time.monotonic())
            self._has_streams = True
        self.publish([streams.publication(control)], deadline)

    def controls(self) -> list[Control]:
        """The entries that stand, oldest first. Raises ``BrokerUnreachable`` and ``ConnectionLost``."""
        timeout = self._settings.publish_timeout
        try:
            ends = streams.find_ends(self._settings, timeout)
        except UnsupportedFeature:
            # where none can be kept, none stands
            return []
        self._connection.deadline = time.monotonic() + timeout
        with self._guard():
            controls = streams.Controls(self._connection, ends)
            controls.read_standing()
            controls.close()
        return controls.take()

    def close(self) -> None:
        """Close the connection; waits for the broker's goodbye for at most a second."""
        close(self._connection)

    def _confirmed(self, receipt: Receipt, deadline: float) -> bool:
        """Whether all is confirmed. What was rejected may be sent again until the deadline, after a pause.

        A quorum queue rejects while it has no leader: while many declare it at once, for example, or a node restarts.
        """
        try:
            return receipt.confirmed
        except PublishRejected as rejected:
            if not rejected.passing or time.monotonic() + PAUSE >= deadline:
                raise
            time.sleep(PAUSE)
            return False

    def _greet(self, deadline: float) -> None:
        """Read what came in while nobody looked: a broker that went away, or that blocks publishers, shows before we send."""
        self._connection.deadline = deadline
        try:
            while self._connection.pump():
                self._connection.dispatch()
        except BROKEN as error:
            broken = self._broken(error)
            if isinstance(broken, ConnectionLost):
                broken.in_doubt = False
            raise broken from error

    def _count(self, line: str) -> int | None:
        return self._ask(line, lambda channel, line: int(channel.queue_declare(line, passive=True).message_count))

    def _ask(self, line: str, question: Callable[[Any, str], T]) -> T | None:
        """One question about a queue on a channel of its own: "no such queue" closes that channel, and nothing else."""
        check_name(line)
        self._connection.deadline = time.monotonic() + self._settings.publish_timeout
        with self._guard():
            try:
                with self._connection.channel() as channel:
                    return question(channel, line)
            except NotFound:
                return None

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """After what a broken connection raises, the session is of no further use."""
        try:
            yield
        except BROKEN as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> BrokerError:
        self._connection.collect()
        return refusal(error, self._settings)

    def _timed_out(self, count: int) -> str:
        timeout = self._settings.publish_timeout
        text = f"{self._url} did not confirm {count} message(s) within publish_timeout={timeout:g} s"
        if self._connection.blocked:
            return f"{text}: it blocks publishers ({self._connection.blocked}); free memory or disk space on the broker"
        return text
