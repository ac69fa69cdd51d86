"""A received message as Kombu's users see it, read out of its row only as far as somebody looks at it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu import message as kombu
from kombu.compression import decompress

from taskq.broker.sqlite.properties import Envelope, envelope

if TYPE_CHECKING:
    from taskq.broker.sqlite.channel import Channel


class Message(kombu.Message):  # type: ignore[misc]
    """One claimed row. ``stored_properties`` and ``stored_body`` are its bytes as they are; the rest is decoded on access."""

    errors: tuple[()] = ()

    def __init__(self, channel: Channel, queue: str, tag: int, redelivered: bool, properties: bytes, body: bytes) -> None:
        # Kombu's own constructor would decode everything, which the supervisor never needs.
        self.channel = channel
        self.delivery_tag = tag
        self.accept = None
        self._decoded_cache = None
        self._state = "RECEIVED"
        self.queue = queue
        self.redelivered = redelivered
        self.stored_properties = properties
        self.stored_body = body

    @cached_property
    def _envelope(self) -> Envelope:
        return envelope(self.stored_properties)

    @property
    def content_type(self) -> str | None:
        """The serializer's content type."""
        return self._envelope.content_type

    @property
    def content_encoding(self) -> str | None:
        """The body's encoding."""
        return self._envelope.content_encoding

    @property
    def headers(self) -> dict[str, Any]:
        """The headers."""
        return self._envelope.headers

    @property
    def properties(self) -> dict[str, Any]:
        """The properties."""
        return self._envelope.properties

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Exchange, routing key and whether the message was delivered before."""
        return {**self.properties.get("delivery_info", {}), "redelivered": self.redelivered}

    @cached_property
    def body(self) -> bytes:
        """The body, decompressed."""
        compression = self.headers.get("compression")
        body: bytes = decompress(self.stored_body, compression) if compression else self.stored_body
        return body
