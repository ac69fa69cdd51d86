"""What a dead letter looks like, however hostile it is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskq.cli import portrait
from taskq.cli.options import as_text, printable
from taskq.dead import DeadLetter, read
from taskq.message import Message
from tests.unit.test_dead import CRASHED, HOSTILE


def letter(headers: dict[str, Any], body: bytes = b'[[1], {"b": 2}, {}]') -> DeadLetter:
    return read(Message(headers=headers, body=body), "money")


def test_a_page() -> None:
    lines = portrait.page(letter({**CRASHED, "tq-dead-traceback": "Traceback:\n\tline\x1b[2J\nValueError"})).splitlines()
    assert "id          1" in lines
    assert "signal      SIGSEGV" in lines
    assert 'kwargs      {"b": 2}' in lines
    assert '    mine: "kept"' in lines
    assert lines[-4:] == ["traceback", "    Traceback:", "            line\\x1b[2J", "    ValueError"]


def test_a_document() -> None:
    made = json.loads(as_text(portrait.document(letter(CRASHED))))
    assert made["last_at"] == "2026-11-22T12:00:00+00:00"
    assert (made["args"], made["kwargs"], made["crashes"], made["traceback"]) == ([1], {"b": 2}, 3, "Traceback")
    assert made["headers"]["tq-history"] == [{"worker": "a"}]
    assert not set(made["headers"]) & {"id", "task", "tq-crashes", "tq-dead-at"}


def test_arguments_that_cannot_be_read_are_shown_as_they_are() -> None:
    page = portrait.page(letter({}, b"\x80pickle\x1b"))
    assert 'unreadable  "the body is not the JSON that taskq speaks' in page
    assert "body        " in page
    assert "pickle" in page
    assert "\x1b" not in page


def test_what_is_nested_too_deeply_does_not_hide_the_rest() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    made = portrait.document(letter({"deep": deep, "id": "1"}))
    assert json.loads(as_text(made, indent=2))["headers"]["deep"] == "nested too deeply to be shown"
    # It would be taken apart recursively, too.
    while deep:
        deep = deep.pop()


@given(HOSTILE, st.binary(max_size=30))
def test_nothing_in_a_letter_can_upset_a_terminal(headers: dict[str, Any], body: bytes) -> None:
    made = letter(headers, body)
    for text in (*portrait.row(made), *portrait.page(made).split("\n")):
        assert text.isprintable(), text
    as_text(portrait.document(made), indent=2).encode()


def test_printable() -> None:
    assert printable("Ä € 😀") == "Ä € 😀"
    assert printable("a\nb\x1b[31m\x9b\u202e\ud800") == "a\\nb\\x1b[31m\\x9b\\u202e\\ud800"
