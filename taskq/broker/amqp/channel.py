"""A pyamqp channel that waits for nothing it need not wait for, and that a failure closes for good.

Acks, rejections and publications go into the connection's buffer. Publications are confirmed in a pipeline, each matched to its
answer by delivery tag: py-amqp takes any answer for the one it waits for.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from amqp import spec
from amqp.exceptions import ChannelError, MessageNacked, RecoverableConnectionError, error_for_code
from kombu.transport import pyamqp

from taskq.broker.amqp.delivered import Delivered, Outgoing

METHOD, FRAME_END = 1, 0xCE
_settlement = struct.Struct(">BHIHHQBB").pack


class PublishBatch:
    """Kombu's hook behind ``Producer.batch()``: publications in flight.

    ``on_answer(message, refusal)`` is called once for each message; the refusal is None, ``MessageNacked``, or the error of a
    message that the broker returned as unroutable. Unless it is replaced, ``flush`` raises the first refusal.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self.max_size = max_size
        self.waiting = 0
        self.refusals: list[Exception] = []
        self.on_answer: Callable[[Any, Exception | None], None] = self._collect

    def publish(
        self, message: Any, exchange: str = "", routing_key: str = "", mandatory: bool = False, **_options: Any
    ) -> None:
        """Into the connection's buffer; waits for answers only where ``max_size`` messages are without one."""
        while self.waiting >= self.max_size:
            self.channel.connection.drain_events()
        self.waiting += 1
        self.channel.publish_confirmed(self, message, exchange, routing_key, mandatory)

    def flush(self) -> None:
        """Wait until every message has its answer; raises the first refusal."""
        while self.waiting:
            self.channel.connection.drain_events()
        if self.refusals:
            first = self.refusals[0]
            self.refusals.clear()
            raise first

    def discard(self) -> None:
        """Nothing: what was published is on its way and cannot be taken back."""

    def close(self) -> None:
        """Nothing: the channel stays in confirm mode."""

    def _collect(self, _message: Any, refusal: Exception | None) -> None:
        if refusal is not None:
            self.refusals.append(refusal)


class Channel(pyamqp.Channel):  # type: ignore[misc]
    """``confirming`` says whether publications are confirmed, and matched here.

    ``on_refused`` is called with the error where the broker closes the channel, instead of raising it.
    """

    supports_batch_publish = True

    def __init__(self, connection: Any, channel_id: int | None = None, on_open: Any = None) -> None:
        super().__init__(connection, channel_id, auto_decode=False, on_open=on_open)
        self._beginning: dict[str, Callable[[], None]] = {}
        self._cancelling: dict[str, Callable[[], None]] = {}
        self._acked: list[int] = []
        self._settled: set[int] = set()
        self._oldest_delivery = 1
        self.confirming = False
        self.on_refused: Callable[[Exception], None] | None = None
        self._last_publication = 0
        self._oldest_publication = 1
        self._unanswered: dict[int, tuple[PublishBatch, Any, str, str]] = {}
        self._returned: dict[int, Exception] = {}

    # publishing

    def request_open(self) -> None:
        """Open the channel with confirmations; the broker's answer is not waited for, since it works in order."""
        self.send_method(spec.Channel.Open, "s", ("",))
        self.send_method(spec.Confirm.Select, "b", (True,))
        self.confirming = True

    @property
    def unanswered(self) -> list[Any]:
        """The messages without an answer, in the order of their publication; still there when the channel is closed."""
        return [message for _, message, _, _ in self._unanswered.values()]

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """For publications that are confirmed; the channel's first one asks the broker for confirmations, and waits."""
        if not self.confirming:
            self.confirm_select()
            self.confirming = True
        return PublishBatch(self, max_size)

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> Outgoing:
        """Kombu's hook; raises ``UnsupportedFeature`` for what AMQP cannot carry."""
        return Outgoing(
            body,
            priority=priority,
            content_type=content_type,
            content_encoding=content_encoding,
            application_headers=headers,
            **(properties or {}),
        )

    def publish_confirmed(self, batch: PublishBatch, message: Any, exchange: str, routing_key: str, mandatory: bool) -> None:
        """Publish, and remember the message until it is answered."""
        self._open_connection().write_message(self.channel_id, exchange, routing_key, mandatory, message)
        self._last_publication += 1
        self._unanswered[self._last_publication] = (batch, message, exchange, routing_key)

    def answer(self, tag: int, multiple: bool, refusal: Exception | None = None) -> None:
        """The broker's answer to the publication ``tag``, or to all up to it."""
        for answered in range(self._oldest_publication, tag + 1) if multiple else (tag,):
            if answered in self._unanswered:
                batch, message, _, _ = self._unanswered.pop(answered)
                batch.waiting -= 1
                batch.on_answer(message, self._returned.pop(answered, refusal))
        if multiple:
            self._oldest_publication = tag + 1

    def _on_basic_nack(self, delivery_tag: int, multiple: bool) -> None:
        self.answer(delivery_tag, multiple, MessageNacked("the broker refused the message"))
        super()._on_basic_nack(delivery_tag, multiple)

    def _on_basic_return(self, reply_code: int, reply_text: str, exchange: str, routing_key: str, message: Any) -> None:
        """Remember it until its ack follows: a return has no tag. Returns come in the order of publishing."""
        refusal = error_for_code(reply_code, reply_text, spec.Basic.Return, ChannelError)
        for tag, (_, sent, *route) in self._unanswered.items():
            if route == [exchange, routing_key] and sent.body == message.body and tag not in self._returned:
                self._returned[tag] = refusal
                return
        super()._on_basic_return(reply_code, reply_text, exchange, routing_key, message)

    # consuming

    def message_to_python(self, raw_message: Any) -> Any:
        """Kombu's hook: deliveries are Kombu messages already."""
        return raw_message if type(raw_message) is Delivered else super().message_to_python(raw_message)

    def basic_consume(self, queue: str = "", consumer_tag: str = "", callback: Any = None, **options: Any) -> str:
        """As py-amqp's, but ready for deliveries that come together with the broker's answer."""
        consumer_tag = consumer_tag or f"ctag.{uuid.uuid4().hex}"
        self.callbacks[consumer_tag] = callback
        tag: str = super().basic_consume(queue, consumer_tag, callback=callback, **options)
        return tag

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Ack at the connection's next flush; ``multiple`` at once, and everything up to the tag."""
        if multiple:
            self._settle(spec.Basic.Ack, delivery_tag, flag=1)
            return
        if not self._acked:
            self._open_connection().unflushed.append(self)
        self._acked.append(delivery_tag)

    def basic_reject(self, delivery_tag: int, requeue: bool) -> None:
        """Reject, to the queue or to its dead letters."""
        self._settled.add(delivery_tag)
        self._settle(spec.Basic.Reject, delivery_tag, flag=1 if requeue else 0)

    def write_acks(self) -> None:
        """Write the acks since the last time: one for all up to a tag, as far as all up to it is settled, the rest singly."""
        acked, self._acked = self._acked, []
        settled, oldest = self._settled, self._oldest_delivery
        settled.update(acked)
        while oldest in settled:
            settled.remove(oldest)
            oldest += 1
        self._oldest_delivery = oldest
        rest = [tag for tag in acked if tag >= oldest]
        if len(rest) < len(acked):
            # the newest of these acks, and not oldest - 1: the broker refuses a tag that is settled already
            self._settle(spec.Basic.Ack, max(tag for tag in acked if tag < oldest), flag=1)
        for tag in rest:
            self._settle(spec.Basic.Ack, tag, flag=0)

    def request_prefetch(self, count: int) -> None:
        """For the consumers that begin after this. The broker's answer is not waited for."""
        self.send_method(spec.Basic.Qos, "lBb", (0, count, False))

    def request_consume(self, queue: str, tag: str, callback: Callable[[Any], None], on_begun: Callable[[], None]) -> None:
        """``on_begun`` is called when the broker has begun to deliver."""
        self.callbacks[tag] = callback
        self._beginning[tag] = on_begun
        self.send_method(spec.Basic.Consume, "BssbbbbF", (0, queue, tag, False, False, False, False, {}))

    def _on_basic_consume_ok(self, consumer_tag: str) -> None:
        if on_begun := self._beginning.pop(consumer_tag, None):
            on_begun()

    def request_cancel(self, consumer_tag: str, on_cancelled: Callable[[], None]) -> None:
        """Deliveries on their way still arrive, then ``on_cancelled`` is called."""
        self._cancelling[consumer_tag] = on_cancelled
        self.send_method(spec.Basic.Cancel, "sb", (consumer_tag, False))

    def _setup_listeners(self) -> None:
        super()._setup_listeners()
        self._callbacks[spec.Basic.ConsumeOk] = self._on_basic_consume_ok

    def _on_basic_cancel_ok(self, consumer_tag: str) -> None:
        super()._on_basic_cancel_ok(consumer_tag)
        if on_cancelled := self._cancelling.pop(consumer_tag, None):
            on_cancelled()

    def _settle(self, method: tuple[int, int], delivery_tag: int, flag: int) -> None:
        self._open_connection().write(_settlement(METHOD, self.channel_id, 13, *method, delivery_tag, flag, FRAME_END))

    def _on_close(self, reply_code: int, reply_text: str, class_id: int, method_id: int) -> None:
        # py-amqp would open the channel again, without its consumers: it would consume nothing for ever
        self.send_method(spec.Channel.CloseOk)
        self.collect()
        error = error_for_code(reply_code, reply_text, (class_id, method_id), ChannelError)
        if self.on_refused is None:
            raise error
        self.on_refused(error)

    def _open_connection(self) -> Any:
        if self.connection is None:
            raise RecoverableConnectionError("the channel is closed")
        return self.connection
