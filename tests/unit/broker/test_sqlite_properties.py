import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.broker.sqlite.properties import correlation_id, decode, encode, envelope
from taskq.errors import MessageError

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.text(alphabet="\ud800\0é")
MARKED = st.binary() | st.datetimes(timezones=st.just(UTC)) | st.dates() | st.decimals(allow_nan=False) | st.uuids()
VALUES = st.recursive(PLAIN | MARKED, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def stored(headers: dict[str, Any], **properties: Any) -> bytes:
    return encode(
        {"content-type": "application/json", "content-encoding": "utf-8", "headers": headers, "properties": properties}
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), VALUES))
def test_headers_come_back_as_they_were(headers: dict[str, Any]) -> None:
    assert envelope(stored(headers)).headers == headers


def test_each_kind_of_value_keeps_its_type() -> None:
    headers = {
        "text": "é",
        "bytes": b"\xff\0",
        "moment": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "day": date(2026, 1, 2),
        "amount": Decimal("1.10"),
        "uuid": UUID(int=7),
        "large": 2**80,
        "infinite": math.inf,
        "list": [None, True, 1.5],
    }
    decoded = decode(stored(headers), b"").headers
    assert decoded == headers
    assert {name: type(value) for name, value in decoded.items()} == {name: type(value) for name, value in headers.items()}


def test_decode_gives_the_message() -> None:
    properties = stored({"task": "add"}, correlation_id="1", reply_to="answers", priority=7)
    message = decode(properties, b"[]")
    assert (message.headers, message.body, message.content_type) == ({"task": "add"}, b"[]", "application/json")
    assert (message.correlation_id, message.reply_to, message.priority) == ("1", "answers", 7)


@pytest.mark.parametrize(
    "rubbish", [b"", b"{", b"[]", b'{"headers": 1}', b'\xff{"__type__": 1}', b'{"__type__": "x", "__value__": 1}']
)
def test_what_cannot_be_read_is_a_message_error(rubbish: bytes) -> None:
    with pytest.raises(MessageError):
        decode(rubbish, b"")
    assert correlation_id(rubbish) is None


def test_the_correlation_id_is_read_alone() -> None:
    assert correlation_id(stored({"correlation_id": "not this one"}, correlation_id="this one", priority=1)) == "this one"
    assert correlation_id(stored({})) is None
