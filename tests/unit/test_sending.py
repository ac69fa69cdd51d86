"""Whether a publication can be sent: its size, and what its broker carries."""

from __future__ import annotations

from typing import Any

import pytest

from taskq import config, sending
from taskq.errors import MessageTooLarge, UnsupportedFeature
from taskq.message import Message, Publication


def publication(size: int, *, reply: bool = False, queue: str = "mail", **headers: Any) -> Publication:
    return Publication(queue, Message(headers={"task": "shop.pay", "id": "1", **headers}, body=b"x" * size), reply=reply)


def test_the_body_and_the_callers_own_headers_count() -> None:
    sending.check_size(publication(100), 100)
    sending.check_size(publication(95, trace="abc"), 100)
    for too_large in (publication(101), publication(96, trace="abc"), publication(0, trace={"a": ["é" * 50]})):
        with pytest.raises(MessageTooLarge, match=r"task 'shop.pay': its message is \d+ bytes, over max_message_bytes=100"):
            sending.check_size(too_large, 100)


def test_what_was_accepted_can_be_published_again() -> None:
    """As a retry, with its history, and as a result that goes back to the caller."""
    again: dict[str, Any] = {"retries": 1, "eta": "2030-01-01T00:00:00", "tq-history": [{"error": "y" * 1000}], "tq-sent": 1.0}
    sending.check_size(publication(100, **again), 100)
    sending.check_size(publication(101, reply=True), 100)


def test_what_the_broker_cannot_carry_names_the_task() -> None:
    check = sending.checker(config.load({"broker": "amqp://nobody@127.0.0.1:1//"}, environment={}))
    check(publication(1))
    with pytest.raises(UnsupportedFeature, match=r"^task 'shop.pay': queue 'x.returned'"):
        check(publication(1, queue="x.returned"))
    with pytest.raises(MessageTooLarge, match="max_message_bytes"):
        check(publication(2_000_000))
