"""Message properties in AMQP's encoding: read in the child, once per task, and written once per publication.

This is AMQP 0-9-1 with RabbitMQ's field types (https://www.rabbitmq.com/amqp-0-9-1-errata.html#section_3). The content
header's twelve leading bytes are not part of it. Decoded values are plain Python: a timestamp is its seconds, a decimal a
float, and text that is not UTF-8 stays bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from taskq.decoding import UNREADABLE
from taskq.describe import text_of
from taskq.errors import MessageError, UnsupportedFeature
from taskq.message import Message

CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE, PRIORITY, CORRELATION_ID, REPLY_TO = (1 << n for n in range(15, 8, -1))
PERSISTENT = 2
#: Headers in which a broker keeps its own account. Sent back, RabbitMQ takes a message that was delayed twice for a
#: dead-letter cycle, and drops it.
BROKER_HEADERS = frozenset(
    f"x-{name}"
    for name in (
        "death",
        "delivery-count",
        "acquired-count",
        "first-death-exchange",
        "first-death-queue",
        "first-death-reason",
        "last-death-exchange",
        "last-death-queue",
        "last-death-reason",
    )
)
_LONG_STRING, _VOID = ord("S"), ord("V")
_read_u32 = struct.Struct(">I").unpack_from
_read_i32 = struct.Struct(">i").unpack_from
_u32 = struct.Struct(">I").pack
_i32 = struct.Struct(">i").pack
_i64 = struct.Struct(">q").pack
_u64 = struct.Struct(">Q").pack
_double = struct.Struct(">d").pack


def decode(properties: bytes, body: bytes) -> Message:
    """The message of a delivery. Raises ``MessageError`` for properties that are not AMQP's."""
    try:
        return _decode(properties, body)
    except (*UNREADABLE, struct.error) as error:
        raise MessageError(f"the message's properties are not valid AMQP: {text_of(error)}") from error


def _decode(buffer: bytes, body: bytes) -> Message:
    flags = buffer[0] << 8 | buffer[1]
    position = 2
    content_type = content_encoding = correlation_id = reply_to = priority = None
    headers: dict[str, Any] = {}
    if flags & CONTENT_TYPE:
        content_type, position = _short_string(buffer, position)
    if flags & CONTENT_ENCODING:
        content_encoding, position = _short_string(buffer, position)
    if flags & HEADERS:
        headers, position = _table(buffer, position)
    if flags & DELIVERY_MODE:
        position += 1
    if flags & PRIORITY:
        priority = buffer[position]
        position += 1
    if flags & CORRELATION_ID:
        correlation_id, position = _short_string(buffer, position)
    if flags & REPLY_TO:
        reply_to, position = _short_string(buffer, position)
    if position > len(buffer):
        raise ValueError("they end too early")
    return Message(
        headers=headers,
        body=body,
        content_type=content_type,
        content_encoding=content_encoding,
        priority=priority,
        correlation_id=correlation_id,
        reply_to=reply_to,
    )


def correlation_id(properties: bytes) -> str | None:
    """The task id alone, whatever the size of the headers; None where there is none, or it cannot be read."""
    try:
        flags = properties[0] << 8 | properties[1]
        if not flags & CORRELATION_ID:
            return None
        position = 2
        if flags & CONTENT_TYPE:
            position += 1 + properties[position]
        if flags & CONTENT_ENCODING:
            position += 1 + properties[position]
        if flags & HEADERS:
            position += 4 + _read_u32(properties, position)[0]
        position += bool(flags & DELIVERY_MODE) + bool(flags & PRIORITY)
        return _short_string(properties, position)[0]
    except (IndexError, ValueError, struct.error):
        return None


def _short_string(buffer: bytes, position: int) -> tuple[str, int]:
    end = position + 1 + buffer[position]
    if end > len(buffer):
        raise ValueError("they end inside a string")
    return buffer[position + 1 : end].decode(), end


def _table(buffer: bytes, position: int) -> tuple[dict[str, Any], int]:
    limit = position + 4 + _read_u32(buffer, position)[0]
    position += 4
    table: dict[str, Any] = {}
    while position < limit:
        end = position + 1 + buffer[position]
        name = buffer[position + 1 : end].decode()
        kind = buffer[end]
        if kind == _VOID:
            table[name] = None
            position = end + 1
        elif kind == _LONG_STRING:
            # what headers mostly hold: read here, for speed
            start = end + 5
            position = start + _read_u32(buffer, end + 1)[0]
            try:
                table[name] = buffer[start:position].decode()
            except UnicodeDecodeError:
                table[name] = buffer[start:position]
        else:
            table[name], position = _READERS[kind](buffer, end + 1)
    if position != limit or limit > len(buffer):
        raise ValueError("a table does not end where it says")
    return table, position


def _array(buffer: bytes, position: int) -> tuple[list[Any], int]:
    limit = position + 4 + _read_u32(buffer, position)[0]
    position += 4
    items = []
    while position < limit:
        item, position = _READERS[buffer[position]](buffer, position + 1)
        items.append(item)
    if position != limit or limit > len(buffer):
        raise ValueError("an array does not end where it says")
    return items, position


def _bytes(buffer: bytes, position: int) -> tuple[bytes, int]:
    end = position + 4 + _read_u32(buffer, position)[0]
    if end > len(buffer):
        raise ValueError("they end inside a value")
    return buffer[position + 4 : end], end


def _long_string(buffer: bytes, position: int) -> tuple[str | bytes, int]:
    raw, end = _bytes(buffer, position)
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        return raw, end


def _void(_buffer: bytes, position: int) -> tuple[None, int]:
    return None, position


def _boolean(buffer: bytes, position: int) -> tuple[bool, int]:
    return buffer[position] != 0, position + 1


def _decimal(buffer: bytes, position: int) -> tuple[float, int]:
    return _read_i32(buffer, position + 1)[0] / 10 ** buffer[position], position + 5


def _number(code: str) -> Callable[[bytes, int], tuple[Any, int]]:
    read, size = struct.Struct(f">{code}").unpack_from, struct.calcsize(code)

    def read_number(buffer: bytes, position: int) -> tuple[Any, int]:
        return read(buffer, position)[0], position + size

    return read_number


#: By the letter of the field type.
_READERS: Mapping[int, Callable[[bytes, int], tuple[Any, int]]] = {
    ord("S"): _long_string,
    ord("V"): _void,
    ord("t"): _boolean,
    ord("F"): _table,
    ord("A"): _array,
    ord("x"): _bytes,
    ord("D"): _decimal,
    **{ord(letter): _number(code) for letter, code in zip("bBUsuIilLfdT", "bBhhHiIqqfdQ", strict=True)},
}


def named(message: Message) -> dict[str, Any]:
    """The properties of a message to be sent, as py-amqp names them."""
    return {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "application_headers": message.headers,
        "delivery_mode": PERSISTENT,
        "priority": message.priority,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
    }


def encode(properties: Mapping[str, Any]) -> bytes:
    """Properties named as py-amqp names them, None left out. Raises ``UnsupportedFeature`` for what AMQP cannot carry."""
    flags = 0
    parts = [b""]
    for flag, name, write in _WRITERS:
        value = properties.get(name)
        if value is not None:
            flags |= flag
            try:
                parts.append(write(value))
            except (ValueError, struct.error, TypeError, AttributeError, RecursionError) as error:
                raise UnsupportedFeature(f"AMQP cannot carry the message's {name}: {error}") from error
    parts[0] = flags.to_bytes(2, "big")
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _name(text: str) -> bytes:
    """A short string: a length byte and UTF-8. Cached, because headers have the same names over and over."""
    return _short(text)


def _short(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > 255:
        raise ValueError(f"{text[:40]!r}… is {len(raw)} bytes, over 255")
    return bytes((len(raw),)) + raw


def _write_table(table: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    for name, value in table.items():
        if name not in BROKER_HEADERS:
            parts += (_name(name), b"V" if value is None else _write_value(value))
    return _sized(b"".join(parts))


def _write_value(value: Any) -> bytes:
    kind = type(value)
    write = _VALUE_WRITERS.get(kind) or next(filter(None, map(_VALUE_WRITERS.get, kind.__mro__)), None)
    if write is None:
        raise TypeError(f"a {kind.__name__} is no header value")
    return write(value)


def _sized(raw: bytes) -> bytes:
    return _u32(len(raw)) + raw


def _write_integer(value: int) -> bytes:
    return b"I" + _i32(value) if -(2**31) <= value < 2**31 else b"l" + _i64(value)


def _write_float(value: float) -> bytes:
    # RabbitMQ cannot read any other, and breaks the connection
    if not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    return b"d" + _double(value)


_VALUE_WRITERS: Mapping[type, Callable[[Any], bytes]] = {
    str: lambda value: b"S" + _sized(value.encode()),
    type(None): lambda _: b"V",
    bool: lambda value: b"t\x01" if value else b"t\x00",
    int: _write_integer,
    float: _write_float,
    bytes: lambda value: b"x" + _sized(value),
    dict: lambda value: b"F" + _write_table(value),
    list: lambda value: b"A" + _sized(b"".join(map(_write_value, value))),
    tuple: lambda value: b"A" + _sized(b"".join(map(_write_value, value))),
}


def _octet(value: int) -> bytes:
    return bytes((value,))


_WRITERS: tuple[tuple[int, str, Callable[[Any], bytes]], ...] = (
    (CONTENT_TYPE, "content_type", _name),
    (CONTENT_ENCODING, "content_encoding", _name),
    (HEADERS, "application_headers", _write_table),
    (DELIVERY_MODE, "delivery_mode", _octet),
    (PRIORITY, "priority", _octet),
    (CORRELATION_ID, "correlation_id", _short),
    (REPLY_TO, "reply_to", _short),
    (1 << 8, "expiration", _short),
    (1 << 7, "message_id", _short),
    (1 << 6, "timestamp", _u64),
    (1 << 5, "type", _short),
    (1 << 4, "user_id", _short),
    (1 << 3, "app_id", _short),
    (1 << 2, "cluster_id", _short),
)
