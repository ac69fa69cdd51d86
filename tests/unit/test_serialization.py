from __future__ import annotations

import dataclasses
import enum
import json
from collections import OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import kombu.utils.json
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.errors import ArgumentRefused, MessageError, TaskqError
from taskq.serialization import decode, plain_arguments, plain_result


def encode_call(task: str, args: list[Any], kwargs: dict[str, Any], names: tuple[str, ...] = ()) -> bytes:
    return msgspec.json.encode((*plain_arguments(task, args, kwargs, names), {}))


ZONES = st.one_of(
    st.none(),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
        lambda d: timezone(timedelta(minutes=d // timedelta(minutes=1)))
    ),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.binary(),
    st.dates(),
    # What comes twice, JSON can't say.
    st.times(timezones=ZONES).map(lambda value: value.replace(fold=0)),
    st.datetimes(timezones=ZONES).map(lambda value: value.replace(fold=0)),
    st.decimals(allow_nan=False),
    st.uuids(),
)
KEYS = st.text().filter(lambda key: key not in ("__type__", "__value__"))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def round_trip(value: Any) -> Any:
    (args, _, _) = decode(encode_call("t", [value], {}))
    return args[0]


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down: True is not 1, 1 is not 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (datetime, time)):
        return (left.utcoffset(), left.isoformat()) == (right.utcoffset(), right.isoformat())
    if isinstance(left, (Decimal, float)):
        return str(left) == str(right)
    return bool(left == right)


@given(VALUES)
def test_what_is_accepted_comes_back_as_it_was(value: Any) -> None:
    assert same(round_trip(value), value)


@given(VALUES)
def test_kombu_reads_what_we_write(value: Any) -> None:
    read = kombu.utils.json.loads(encode_call("t", [value], {"k": value}))
    assert same(read, [[value], {"k": value}, {}])


@given(VALUES)
def test_we_read_what_kombu_writes(value: Any) -> None:
    assert same(decode(kombu.utils.json.dumps([[value], {}]).encode())[0][0], value)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**64) - 1,
        10**400,
        "",
        "\x00\x7f\u2028\U0001f40d",
        b"",
        b"\xff\x00",
        b"text",
        1e308,
        -0.0,
        5e-324,
        Decimal("1.10"),
        Decimal("Infinity"),
        datetime.max,
        datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
        date.min,
        time(23, 59, 59, 999999),
        UUID(int=0),
        {"": [{}, [], {"a": None}]},
    ],
    ids=repr,
)
def test_edges_come_back(value: Any) -> None:
    assert same(round_trip(value), value)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Order:
    id: int


class Model:
    pk = 3


class Text(str):
    __slots__ = ()


Point = namedtuple("Point", "x y")  # noqa: PYI024  # the untyped kind is what applications have
LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({1, 2}, "send a list"),
        (frozenset(), "send a list"),
        ((1, 2), "send a list"),
        (Point(1, 2), "send a list"),
        (Colour.RED, "send its .value"),
        (Level.LOW, "send its .value"),
        (Order(1), "asdict"),
        (Model(), "primary key"),
        (Text("a"), "plain str"),
        (OrderedDict(a=1), "plain dict"),
        (defaultdict(int), "plain dict"),
        ({1: "one"}, "text keys"),
        ({None: "one"}, "text keys"),
        ({"a": {True: 1}}, "at ['a']"),
        ([1, [2, {3}]], "at [1][1]"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (timedelta(1), "plain values"),
        (Path("/"), "plain values"),
        (object(), "plain values"),
        (1j, "plain values"),
        (bytearray(b"a"), "plain values"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({"__type__": "x", "__value__": 1}, "__type__"),
        (LOOP, "nested too deeply"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_what_json_would_change_is_refused_naming_the_argument(value: Any, says: str) -> None:
    with pytest.raises(ArgumentRefused) as caught:
        encode_call("shop.mail", [1, value], {}, ("to", "subject"))
    assert "argument 'subject' of task 'shop.mail'" in str(caught.value)
    assert says in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, TaskqError)


def test_a_refused_argument_is_named_as_the_caller_knows_it() -> None:
    with pytest.raises(ArgumentRefused, match=r"argument 'to' of"):
        encode_call("t", [], {"to": {1}})
    with pytest.raises(ArgumentRefused, match=r"argument number 3 of"):
        encode_call("t", [1, 2, {3}], {}, ("a", "b"))


def test_a_return_value_may_be_a_tuple_but_no_set() -> None:
    assert plain_result((1, [(2, b"\xff")])) == [1, [[2, {"__type__": "base64", "__value__": "/w=="}]]]
    with pytest.raises(ArgumentRefused, match=r"return value, at \['a'\]\[1\]"):
        plain_result({"a": (1, {2})})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a":}',
        b"[1] x",
        b"\x80\x04\x95\x0c",
        b'{"__type__": "os.system", "__value__": "true"}',
        b'{"__type__": ["datetime"], "__value__": 1}',
        b'{"__type__": "datetime", "__value__": "yesterday"}',
        b'{"__type__": "datetime", "__value__": 5}',
        b'{"__type__": "decimal", "__value__": "one"}',
        b'{"__type__": "uuid", "__value__": {}}',
        b'{"__type__": "uuid", "__value__": "x"}',
        b'{"__type__": "base64", "__value__": "?"}',
        b'{"__type__": "bytes", "__value__": 5}',
        b"[" * 100_000,
        b'{"__type__":' * 100_000,
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_json_of_ours_is_a_message_error(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode(body)


@given(st.binary(max_size=200))
def test_no_bytes_can_raise_anything_else(body: bytes) -> None:
    try:
        decode(body)
    except MessageError:
        return


@given(st.binary(max_size=80).map(lambda tail: b'{"__type__": "datetime", "__value__": ' + tail + b"}"))
def test_no_marker_can_raise_anything_else(body: bytes) -> None:
    try:
        decode(body)
    except MessageError:
        return


def test_other_charsets_are_read_and_unknown_ones_refused() -> None:
    assert decode('["é"]'.encode("latin-1"), "latin-1") == ["é"]
    assert decode('["é"]'.encode("utf-16"), "utf-16") == ["é"]
    with pytest.raises(MessageError):
        decode(b"[]", "no-such-charset")
    with pytest.raises(MessageError):
        decode(b"[]", "base64")


def test_what_pythons_json_writes_is_read() -> None:
    assert decode(json.dumps([float("inf")]).encode()) == [float("inf")]


def test_a_marker_inside_text_is_text() -> None:
    text = '{"__type__": "datetime", "__value__": "2024-01-01"}'
    assert round_trip([text, {"__type__": 1}, {"__value__": 1}]) == [text, {"__type__": 1}, {"__value__": 1}]


def test_encoding_does_not_change_the_arguments() -> None:
    value: dict[str, Any] = {"a": [uuid4(), {"b": b"x"}]}
    copy = {"a": [value["a"][0], {"b": b"x"}]}
    encode_call("t", [value], {})
    assert value == copy
