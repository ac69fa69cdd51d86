"""What RabbitMQ could never carry is refused without asking it, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.amqp.checks import FRAME_MAX, FRAME_OVERHEAD, RESERVE, _most, checker
from taskq.broker.amqp.properties import encode, named
from taskq.config import Settings, load
from taskq.errors import MessageTooLarge, UnsupportedFeature
from taskq.message import ATTEMPTS, Message, Publication


def settings(**keywords: Any) -> Settings:
    return load({"broker": "amqp://broker.example//", **keywords}, environment={})


def sent(queue: str = "mail", *, delay: float = 0.0, reply: bool = False, **fields: Any) -> Publication:
    return Publication(queue, Message(**{"headers": {}, "body": b"", **fields}), delay, reply=reply)


@pytest.mark.parametrize(
    "refused",
    [
        sent(""),
        sent("q" * 247),
        sent("é" * 124),
        sent("caf\udce9"),
        sent("a\tb"),
        sent("amq.gen"),
        sent("mail.returned"),
        sent(delay=float("nan")),
        sent(delay=float("inf")),
        sent("caf\udce9", reply=True),
        sent("q" * 256, reply=True),
        sent(correlation_id="i" * 256),
        sent(correlation_id="é" * 128),
        sent(correlation_id=5),
        sent(reply_to="caf\udce9"),
        sent(content_type="t" * 300),
        sent(priority=3),
        sent(headers={"x": 2**63}),
        sent(headers={"x": float("nan")}),
        sent(headers={5: "x"}),
        sent(headers={"x": {"y": object()}}),
        sent(headers={"x": "caf\udce9"}),
    ],
)
def test_what_is_refused(refused: Publication) -> None:
    with pytest.raises(UnsupportedFeature):
        checker(settings())(refused)


def test_what_goes_through() -> None:
    check = checker(settings())
    for carried in (
        sent("q" * 246),
        sent("é" * 123),
        sent("amq.gen-1234", reply=True),
        sent(correlation_id="i" * 255, reply_to="r" * 255),
        sent(headers={"x": [None, True, 2**63 - 1], "é": "é" * 1000, "y": {"z": [1.5, b"\xff"]}}),
        sent(delay=2**28 - 1),
    ):
        check(carried)


def test_a_priority_counts_where_it_is_given() -> None:
    """A message that came with one, from a Celery client for example, is tried again and dies as others do."""
    check = checker(settings())
    check(sent(priority=3, headers={"retries": 1}))
    check(sent("mail.dead", priority=3))
    with pytest.raises(UnsupportedFeature, match="within 0 and queue_max_priority=5"):
        checker(settings(queue_type="classic", queue_max_priority=5))(sent(priority=-1))


def test_a_new_message_leaves_room_for_what_is_added_on_its_way() -> None:
    check, room = checker(settings()), FRAME_MAX - FRAME_OVERHEAD
    empty = len(encode(named(Message(headers={"x": ""}, body=b""))))
    check(sent(headers={"x": "h" * (room - RESERVE - empty)}))
    with pytest.raises(MessageTooLarge, match=r"98285 bytes, over 98284.*'x'.*argument"):
        check(sent(headers={"x": "h" * (room - RESERVE - empty + 1)}))
    check(sent("mail.dead", headers={"x": "h" * (room - empty)}))
    again = len(encode(named(Message(headers={"x": "", ATTEMPTS: 1}, body=b""))))
    check(sent(headers={"x": "h" * (room - again), ATTEMPTS: 1}))
    with pytest.raises(MessageTooLarge, match="over 131052"):
        check(sent(headers={"x": "h" * (room - again + 1), ATTEMPTS: 1}))


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=300)


@given(st.dictionaries(st.text(max_size=300), scalars | st.lists(scalars, max_size=3), max_size=6), st.none() | st.text())
def test_the_estimate_is_never_too_small(headers: dict[str, Any], identifier: str | None) -> None:
    message = Message(headers=headers, body=b"", correlation_id=identifier)
    most = _most(message)
    try:
        size = len(encode(named(message)))
    except UnsupportedFeature:
        assert most == float("inf")
    else:
        assert size <= most
