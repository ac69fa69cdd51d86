"""A finding: what a check has seen, and what mends it."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """``check`` is what was looked at, ``mend`` a sentence that says what to do, where something is to be done.

    An error keeps tasks from being sent, run or told of; a warning may do so one day.
    """

    level: Level
    check: str
    text: str
    mend: str | None = None


def ok(check: str, text: str) -> Finding:
    """All is as it should be."""
    return Finding("ok", check, text)


def warning(check: str, text: str, mend: str) -> Finding:
    """Something that may do harm one day."""
    return Finding("warning", check, text, mend)


def error(check: str, text: str, mend: str) -> Finding:
    """Something that does harm."""
    return Finding("error", check, text, mend)
