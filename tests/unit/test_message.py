"""What a message says, read without believing it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from taskq.message import Message


@pytest.mark.parametrize("value", ["x", None, True, [], float("nan"), float("inf"), -1e308, -1, 1e308, 2**63, 10**400])
def test_what_is_no_moment_is_none(value: Any) -> None:
    assert Message(headers={"at": value}, body=b"").moment("at") is None


def test_a_moment_is_a_float() -> None:
    now = time.time()
    message = Message(headers={"at": now, "whole": int(now)}, body=b"")
    assert (message.moment("at"), message.moment("whole"), message.moment("nowhere")) == (now, float(int(now)), None)


@pytest.mark.parametrize("value", [None, 5, [1], {"a": {}}])
def test_what_is_no_text_is_no_id(value: Any) -> None:
    assert Message(headers={"id": value}, body=b"").id is None
