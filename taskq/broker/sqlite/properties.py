"""How a message's properties and headers stand in its row: one JSON object, the body apart.

The names are those of Kombu's virtual transports, and values that JSON has no word for are marked as Kombu's own JSON does.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from kombu.utils.json import JSONEncoder, loads

from taskq.decoding import UNREADABLE, decoded
from taskq.describe import bounded
from taskq.errors import MessageError
from taskq.message import Message


class Envelope(msgspec.Struct, frozen=True):
    """Everything about a message but its body."""

    content_type: str | None = msgspec.field(default=None, name="content-type")
    content_encoding: str | None = msgspec.field(default=None, name="content-encoding")
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}


class _Correlation(msgspec.Struct):
    correlation_id: str | None = None


class _Identity(msgspec.Struct):
    properties: _Correlation


_PRIORITY, _TEXT = int | None, str | None
_PLAIN = frozenset({str, int, bool, type(None)})
_encode = JSONEncoder(separators=(",", ":")).encode
_decode_plain = msgspec.json.Decoder(Envelope).decode
_decode_identity = msgspec.json.Decoder(_Identity).decode


def encode(message: dict[str, Any]) -> bytes:
    """The properties of a message in the form of Kombu's virtual transports."""
    fields = {
        "content-type": message["content-type"],
        "content-encoding": message["content-encoding"],
        "headers": message["headers"],
        "properties": message["properties"],
    }
    if _is_plain(fields):
        try:
            return msgspec.json.encode(fields)
        except (UnicodeEncodeError, OverflowError):
            # A lone surrogate, or an integer of more than 64 bits: Python's JSON carries both.
            pass
    return bytes(_encode(fields), "ascii")


def _is_plain(value: Any) -> bool:
    """Whether msgspec, which is several times faster, writes the value as Python's JSON does."""
    kind = type(value)
    if kind is dict:
        return all(type(name) is str for name in value) and all(type(v) in _PLAIN or _is_plain(v) for v in value.values())
    if kind is list:
        return all(map(_is_plain, value))
    return kind in _PLAIN or (kind is float and math.isfinite(value))


def envelope(properties: bytes) -> Envelope:
    """The envelope in these bytes; raises ``MessageError``."""
    if b'"__type__"' not in properties:
        try:
            return _decode_plain(properties)
        except UNREADABLE:
            # Python's JSON carries a few values that msgspec refuses: NaN, infinity, lone surrogates.
            pass
    return decoded(_decode_marked, properties, "what the row says of the message")


def _decode_marked(properties: bytes) -> Envelope:
    return msgspec.convert(loads(properties), Envelope)


def decode(properties: bytes, body: bytes) -> Message:
    """The message of a delivery; raises ``MessageError`` for properties that cannot be read."""
    read = envelope(properties)
    priority, task_id, reply_to = map(read.properties.get, ("priority", "correlation_id", "reply_to"))
    if not (isinstance(priority, _PRIORITY) and isinstance(task_id, _TEXT) and isinstance(reply_to, _TEXT)):
        raise MessageError(f"the message's properties cannot be understood: {bounded(repr(read.properties))}")
    return Message(
        headers=read.headers,
        body=body,
        content_type=read.content_type,
        content_encoding=read.content_encoding,
        priority=priority,
        correlation_id=task_id,
        reply_to=reply_to,
    )


def correlation_id(properties: bytes) -> str | None:
    """The correlation id alone, which is the task's id; None where there is none or the properties cannot be read."""
    try:
        return _decode_identity(properties).properties.correlation_id
    except UNREADABLE:
        pass
    try:
        found = envelope(properties).properties.get("correlation_id")
    except MessageError:
        return None
    return found if isinstance(found, str) else None
