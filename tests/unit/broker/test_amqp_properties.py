"""AMQP properties: what py-amqp writes is read, what we write py-amqp reads, and garbage raises ``MessageError`` alone."""

from __future__ import annotations

import struct
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import amqp
import pytest
from amqp.serialization import decode_properties_basic
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.amqp.properties import BROKER_HEADERS, correlation_id, decode, encode
from taskq.errors import MessageError, UnsupportedFeature
from taskq.message import Message

short = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
#: Hypothesis tries the words of our own source, too.
names = short.filter(lambda name: name not in BROKER_HEADERS)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | short,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
headers = st.dictionaries(names, values, max_size=15)
optional = st.none() | short
properties = st.fixed_dictionaries(
    {
        "content_type": optional,
        "content_encoding": optional,
        "application_headers": st.none() | headers,
        "delivery_mode": st.sampled_from([None, 1, 2]),
        "priority": st.none() | st.integers(0, 255),
        "correlation_id": optional,
        "reply_to": optional,
        "expiration": optional,
        "message_id": optional,
        "timestamp": st.none() | st.integers(0, 2**40),
        "type": optional,
        "app_id": optional,
    }
)


def by_py_amqp(given_properties: dict[str, Any]) -> bytes:
    raw: bytes = amqp.Message("", **given_properties)._serialize_properties()
    return raw


def table(*fields: bytes) -> bytes:
    """Properties with headers and nothing else."""
    joined = b"".join(fields)
    return struct.pack(">HI", 1 << 13, len(joined)) + joined


@given(properties)
def test_reads_what_py_amqp_writes(given_properties: dict[str, Any]) -> None:
    raw = by_py_amqp(given_properties)
    assert decode(raw, b"body") == Message(
        headers=given_properties["application_headers"] or {},
        body=b"body",
        **{
            name: given_properties[name]
            for name in ("content_type", "content_encoding", "priority", "correlation_id", "reply_to")
        },
    )
    assert correlation_id(raw) == given_properties["correlation_id"]


@given(properties)
def test_py_amqp_reads_what_is_written(given_properties: dict[str, Any]) -> None:
    read, end = decode_properties_basic(encode(given_properties), 0)
    assert read == {name: value for name, value in given_properties.items() if value is not None}
    assert end == len(encode(given_properties))


@given(st.binary(max_size=200))
def test_garbage_raises_message_error_alone(raw: bytes) -> None:
    with suppress(MessageError):
        decode(raw, b"")
    correlation_id(raw)


@given(properties, st.data())
def test_a_cut_or_changed_encoding_raises_message_error_alone(given_properties: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(by_py_amqp(given_properties))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(position, len(raw))) :]
    with suppress(MessageError):
        decode(bytes(raw), b"")
    correlation_id(bytes(raw))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"S\0\0\0\2hi", "hi"),
        (b"S\0\0\0\1\xff", b"\xff"),
        (b"V", None),
        (b"t\1", True),
        (b"t\0", False),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"U\xff\xff", -1),
        (b"s\xff\xff", -1),
        (b"u\xff\xff", 65535),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l" + b"\xff" * 8, -1),
        (b"L" + b"\xff" * 8, -1),
        (b"f" + struct.pack(">f", 0.5), 0.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"D\2" + struct.pack(">i", -125), -1.25),
        (b"T" + struct.pack(">Q", 1_700_000_000), 1_700_000_000),
        (b"x\0\0\0\2\xff\0", b"\xff\0"),
        (b"A\0\0\0\3Vt\1", [None, True]),
        (b"F\0\0\0\3\1kV", {"k": None}),
        (b"A\0\0\0\0", []),
        (b"F\0\0\0\0", {}),
    ],
)
def test_every_field_type_that_rabbitmq_sends(field: bytes, value: object) -> None:
    assert decode(table(b"\4name" + field, b"\4lastV"), b"").headers == {"name": value, "last": None}


def test_py_amqps_own_types() -> None:
    raw = by_py_amqp({"application_headers": {"t": datetime(2024, 1, 1, tzinfo=UTC), "d": Decimal("1.5"), "b": b"\xff"}})
    assert decode(raw, b"").headers == {"t": 1_704_067_200, "d": 1.5, "b": b"\xff"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x20",
        table(b"\4name?"),
        table(b"\4nameS\0\0\0\xffhi"),
        table(b"\4nameA\0\0\0\2I\0"),
        table(b"\1\xffV"),
        b"\x20\0\0\0\0\x10\1kV",
        b"\x84\0\5abc",
        table(b"\1kA\xff\xff\xff\xff"),
    ],
)
def test_malformed(raw: bytes) -> None:
    with pytest.raises(MessageError, match="not valid AMQP"):
        decode(raw, b"")


def test_nesting_without_end_is_malformed() -> None:
    nested = b""
    for _ in range(5000):
        nested = b"A" + struct.pack(">I", len(nested)) + nested
    with pytest.raises(MessageError):
        decode(table(b"\1k" + nested), b"")


def test_the_brokers_own_headers_are_not_sent_back() -> None:
    sent = encode({"application_headers": {"x-death": [{"count": 1}], "x-first-death-queue": "q", "x-mine": 1}})
    assert decode(sent, b"").headers == {"x-mine": 1}


@pytest.mark.parametrize(
    ("unsupported", "named"),
    [
        ({"application_headers": {"k": object()}}, "application_headers"),
        ({"application_headers": {"k": 2**64}}, "application_headers"),
        ({"application_headers": {"k" * 256: 1}}, "application_headers"),
        ({"application_headers": {"k": "\ud800"}}, "application_headers"),
        ({"correlation_id": "x" * 256}, "correlation_id"),
        ({"priority": 256}, "priority"),
    ],
)
def test_what_amqp_cannot_carry(unsupported: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedFeature, match=named):
        encode(unsupported)
