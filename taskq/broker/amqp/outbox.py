"""Publishing on one channel in confirm mode, without waiting: a publication goes out, its receipt says what became of it.

A message is persistent and mandatory. Where the broker has lost the queue since it was declared, the queue is declared again
and the message sent once more, within the same receipt. A reply is not mandatory, and its queue is not ours to declare: where
nobody waits for it any more, the broker confirms it and drops it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amqp.exceptions import MessageNacked

from taskq import log
from taskq.broker.amqp.topology import Topology, check_route
from taskq.config import Settings, masked
from taskq.errors import PublishRejected, Unroutable
from taskq.message import Message, Publication

PERSISTENT = 2

logger = log.get_logger("taskq.broker")


class Receipt:
    """The broker's answer to some publications.

    ``unanswered`` are those without one, ``rejected`` those that it would not take now, ``refused`` is why one has no way.
    """

    def __init__(self, publications: Iterable[Publication], url: str) -> None:
        self.unanswered = dict(enumerate(publications))
        self.rejected: list[Publication] = []
        self.refused: Unroutable | None = None
        self._url = url

    @property
    def confirmed(self) -> bool:
        """Whether the broker has taken responsibility for every message.

        Raises ``Unroutable``, or ``PublishRejected`` once every message is answered.
        """
        if self.refused is not None:
            raise self.refused
        if self.rejected and not self.unanswered:
            queues = ", ".join(sorted({publication.queue for publication in self.rejected}))
            raise PublishRejected(f"{self._url} refused {len(self.rejected)} message(s) for {queues}: is the queue full?")
        return not self.unanswered


class Outbox:
    """One channel's publications."""

    def __init__(self, channel: Any, settings: Settings) -> None:
        self._url = masked(settings.broker)
        self._topology = Topology(channel, settings)
        self._channel = channel
        # without a limit: what is on its way at once is the caller's choice, who must not wait here
        self._batch = channel.create_publish_batch(max_size=2**62)
        self._batch.on_answer = self._answered

    def send(self, publications: Iterable[Publication]) -> Receipt:
        """Into the connection's buffer; its ``flush`` sends it."""
        # encoded first: what cannot be encoded raises before anything is on its way
        prepared = []
        for publication in publications:
            if not publication.reply:
                check_route(publication)
            prepared.append((publication, self._prepare(publication.message)))
        receipt = Receipt((publication for publication, _ in prepared), self._url)
        for number, (publication, outgoing) in enumerate(prepared):
            outgoing.origin = receipt, number, False
            self._send(publication, outgoing)
        return receipt

    def _send(self, publication: Publication, outgoing: Any) -> None:
        if publication.reply:
            self._batch.publish(outgoing, "", publication.queue, mandatory=False)
            return
        exchange, routing_key = self._topology.route(publication)
        self._batch.publish(outgoing, exchange, routing_key, mandatory=True)

    def _prepare(self, message: Message) -> Any:
        return self._channel.prepare_message(
            message.body,
            message.priority,
            message.content_type,
            message.content_encoding,
            message.headers,
            {"delivery_mode": PERSISTENT, "correlation_id": message.correlation_id, "reply_to": message.reply_to},
        )

    def _answered(self, outgoing: Any, refusal: Exception | None) -> None:
        receipt, number, again = outgoing.origin
        if refusal is None:
            del receipt.unanswered[number]
            return
        publication = receipt.unanswered[number]
        if publication.reply:
            # Whose queue takes no more must not keep a worker from settling.
            logger.warning("reply_refused", queue=publication.queue, id=publication.message.correlation_id)
            del receipt.unanswered[number]
        elif isinstance(refusal, MessageNacked):
            receipt.rejected.append(receipt.unanswered.pop(number))
        elif again:
            receipt.refused = Unroutable(f"{self._url} found no queue {publication.queue!r} for a message: {refusal}")
        else:
            self._topology.forget(publication.queue)
            outgoing.origin = receipt, number, True
            self._send(publication, outgoing)
