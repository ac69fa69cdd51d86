"""Publishing in confirm mode, without waiting: a publication goes out, its receipt says what became of it.

A message is persistent and mandatory. Where the broker has lost the queue since it was declared, the queue is declared again
and the message sent once more, within the same receipt. A reply is not mandatory, and its queue is not ours to declare: where
nobody waits for it any more, the broker confirms it and drops it.

RabbitMQ refuses some publications by closing the channel (no permission, too large a message, a queue with other arguments),
and says not which. So whatever had no answer is sent again on a new channel, one receipt at a time: a channel that is then
closed again was closed for the one receipt under way. That one is refused, and all the others are confirmed as ever. What
the broker had taken before it closed the channel is there twice, as after a broken connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from amqp.exceptions import MessageNacked

from taskq import log
from taskq.broker.amqp.checks import FRAME_OVERHEAD, check_name, check_route, too_large
from taskq.broker.amqp.delivered import Outgoing
from taskq.broker.amqp.properties import named
from taskq.broker.amqp.topology import Topology, met, publication_refusal
from taskq.broker.amqp.transport import Connection
from taskq.config import Settings, masked
from taskq.errors import BrokerError, PublishRejected, Unroutable
from taskq.message import Publication

logger = log.get_logger("taskq.broker")


class Receipt:
    """The broker's answer to some publications.

    ``unanswered`` are those without one, ``rejected`` those that it would not take now, ``refused`` is why it will not take
    the rest.
    """

    def __init__(self, publications: Iterable[Publication], url: str) -> None:
        self.unanswered = dict(enumerate(publications))
        self.rejected: list[Publication] = []
        self.refused: BrokerError | None = None
        self._url = url

    @property
    def unconfirmed(self) -> Sequence[Publication]:
        """Those that the broker has not taken responsibility for."""
        return [*self.unanswered.values(), *self.rejected]

    @property
    def confirmed(self) -> bool:
        """Whether the broker has taken responsibility for every message.

        Raises ``Unroutable``, ``QueueMismatch`` or ``PublishRejected``; where that may pass, once every message is answered.
        """
        if self.refused is not None:
            raise self.refused
        if self.rejected and not self.unanswered:
            queues = ", ".join(sorted({publication.queue for publication in self.rejected}))
            raise PublishRejected(f"{self._url} refused {len(self.rejected)} message(s) for {queues}: is the queue full?")
        return not self.unanswered


class Outbox:
    """The publications of one connection, on one channel after the other.

    ``_alone`` is the receipt that is sent with nothing else on its way, since the channel was closed; ``_waiting`` are those
    that come after it, each with its messages.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._url = masked(settings.broker)
        self._settings = settings
        self._connection = connection
        self._alone: Receipt | None = None
        self._waiting: deque[list[Any]] = deque()
        self._open()

    def _open(self) -> None:
        channel = self._connection.Channel(self._connection)
        channel.on_refused = self._closed
        channel.request_open()
        self._channel = channel
        self._topology = Topology(channel, self._settings)
        # without a limit: what is on its way at once is the caller's choice, who must not wait here
        self._batch = channel.create_publish_batch(max_size=2**62)
        self._batch.on_answer = self._answered

    def send(self, publications: Iterable[Publication]) -> Receipt:
        """Into the connection's buffer; its ``flush`` sends it.

        Raises ``UnsupportedFeature`` and ``MessageTooLarge`` before anything is on its way.
        """
        prepared = [(publication, self._encoded(publication)) for publication in publications]
        receipt = Receipt((publication for publication, _ in prepared), self._url)
        for number, (_, outgoing) in enumerate(prepared):
            outgoing.origin = receipt, number, False
        messages = [outgoing for _, outgoing in prepared]
        if self._alone is None:
            self._send(messages)
        else:
            self._waiting.append(messages)
        return receipt

    def _encoded(self, publication: Publication) -> Any:
        if publication.reply:
            check_name(publication.queue)
        else:
            check_route(publication)
        outgoing = Outgoing(publication.message.body, **named(publication.message))
        # The broker breaks the connection for a frame too large, with all that is on its way there.
        size, room = len(outgoing.raw_properties), self._connection.frame_max - FRAME_OVERHEAD
        if size > room:
            raise too_large(publication, size, room)
        return outgoing

    def _send(self, messages: Sequence[Any]) -> None:
        for outgoing in messages:
            receipt, number, _ = outgoing.origin
            publication = receipt.unanswered[number]
            if publication.reply:
                self._batch.publish(outgoing, "", publication.queue, mandatory=False)
            else:
                exchange, routing_key = self._topology.route(publication)
                self._batch.publish(outgoing, exchange, routing_key, mandatory=True)

    def _answered(self, outgoing: Any, refusal: Exception | None) -> None:
        receipt, number, again = outgoing.origin
        if refusal is None:
            del receipt.unanswered[number]
        else:
            self._refused(outgoing, receipt, number, refusal, again=again)
        if self._alone is not None and not self._alone.unanswered:
            self._send_next()

    def _refused(self, outgoing: Any, receipt: Receipt, number: int, refusal: Exception, *, again: bool) -> None:
        publication = receipt.unanswered[number]
        if publication.reply:
            # Whose queue takes no more must not keep a worker from settling.
            logger.warning("reply_refused", queue=publication.queue, id=publication.message.correlation_id)
            del receipt.unanswered[number]
        elif isinstance(refusal, MessageNacked):
            receipt.rejected.append(receipt.unanswered.pop(number))
        elif again:
            text = f"{self._url} found no queue {publication.queue!r} for a message: {refusal}"
            receipt.refused = Unroutable(text, passing=False)
            del receipt.unanswered[number]
        else:
            self._topology.forget(publication.queue)
            outgoing.origin = receipt, number, True
            self._send([outgoing])

    def _closed(self, error: Exception) -> None:
        """The broker has closed the channel: go on with another one."""
        unanswered, alone = self._channel.unanswered, self._alone
        if not met(error, self._settings) and alone is not None:
            # whatever still has no answer belongs to this one
            alone.refused = publication_refusal(error, self._settings)
            unanswered = []
        receipts: dict[int, list[Any]] = {}
        for outgoing in unanswered:
            receipts.setdefault(id(outgoing.origin[0]), []).append(outgoing)
        self._waiting.extendleft(reversed(receipts.values()))
        self._open()
        self._send_next()

    def _send_next(self) -> None:
        """Send the next receipt's messages, with nothing else on its way."""
        messages = self._waiting.popleft() if self._waiting else []
        self._alone = messages[0].origin[0] if messages else None
        self._send(messages)
