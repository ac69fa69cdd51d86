"""How the commands that talk to workers show what they have heard."""

from __future__ import annotations

import pytest

from taskq.cli.workers import refused, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.346, "0.35s"),
        (5.0, "5s"),
        (12.9, "12s"),
        (60, "1m 0s"),
        (185, "3m 5s"),
        (7800, "2h 10m"),
        (360_000, "4d 4h"),
    ],
)
def test_a_length_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_refusal_is_one_line() -> None:
    assert refused({"ok": "pong"}) is None
    assert refused([1]) is None
    assert refused({"error": "no\x1b[2J\nway"}) == "no\\x1b[2J\\nway"
