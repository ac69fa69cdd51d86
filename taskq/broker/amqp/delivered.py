"""Kombu messages of this transport: received ones that decode when asked, sent ones that are encoded at once."""

from __future__ import annotations

from typing import Any

from amqp.basic_message import Message as AmqpMessage
from amqp.serialization import decode_properties_basic
from kombu.compression import decompress
from kombu.transport import pyamqp

from taskq.broker.amqp.properties import encode


class Delivered(pyamqp.Message):  # type: ignore[misc]
    """A received message. ``raw_properties`` and ``raw_body`` are its bytes; Kombu's attributes come from them on demand.

    Decompression and decoding fail where the body is asked for, so that ``errors`` is always empty.
    """

    __slots__ = (
        "_decoded_cache",
        "_properties",
        "_route",
        "_state",
        "accept",
        "channel",
        "consumer_tag",
        "delivery_tag",
        "raw_body",
        "raw_properties",
        "redelivered",
    )
    errors: Any = ()

    def __init__(
        self, channel: Any, tag: str, delivery_tag: int, redelivered: bool, route: bytes, properties: bytes, body: bytes
    ) -> None:
        # not Kombu's: it decodes everything
        self.channel = channel
        self.consumer_tag = tag
        self.delivery_tag = delivery_tag
        self.redelivered = redelivered
        self.raw_properties = properties
        self.raw_body = body
        self.accept = None
        self._route = route
        self._state = "RECEIVED"
        self._decoded_cache = None
        self._properties: dict[str, Any] | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """All properties by py-amqp's names."""
        if self._properties is None:
            self._properties = decode_properties_basic(self.raw_properties, 0)[0]
        return self._properties

    @property
    def headers(self) -> dict[str, Any]:
        """The application's headers."""
        headers: dict[str, Any] = self.properties.setdefault("application_headers", {})
        return headers

    @property
    def content_type(self) -> str | None:
        """How the body is serialized."""
        return self.properties.get("content_type")

    @property
    def content_encoding(self) -> str | None:
        """The body's character set."""
        return self.properties.get("content_encoding")

    @property
    def body(self) -> bytes:
        """The body, decompressed."""
        if compression := self.headers.get("compression"):
            plain: bytes = decompress(self.raw_body, compression)
            return plain
        return self.raw_body

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Where the delivery comes from; ``_route`` is exchange and routing key, each after its length."""
        end = 1 + self._route[0]
        return {
            "consumer_tag": self.consumer_tag,
            "delivery_tag": self.delivery_tag,
            "redelivered": self.redelivered,
            "exchange": self._route[1:end].decode(),
            "routing_key": self._route[end + 1 :].decode(),
        }

    def ack(self, multiple: bool = False) -> None:
        """As Kombu's, without looking for automatic acks, which these consumers never ask for."""
        if self._state != "RECEIVED":
            raise self.MessageStateError(f"message already settled: {self._state}")
        self.channel.basic_ack(self.delivery_tag, multiple)
        self._state = "ACK"


class Outgoing(AmqpMessage):  # type: ignore[misc]
    """A message to send. ``origin`` is whatever its publisher wants to find again with the confirmation."""

    def __init__(self, body: Any, **properties: Any) -> None:
        if isinstance(body, str):
            body = body.encode(properties.get("content_encoding") or "utf-8")
        super().__init__(body, **properties)
        self.raw_properties = encode(properties)
        self.origin: Any = None

    def _serialize_properties(self) -> bytes:
        return self.raw_properties
