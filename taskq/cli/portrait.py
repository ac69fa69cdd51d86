"""What a dead letter looks like: a row of a table, a page, or a JSON document. Nothing in a letter can upset a terminal."""

from __future__ import annotations

import textwrap
from datetime import datetime
from typing import Any, Final

from taskq.cli.options import as_text, printable
from taskq.dead import DeadLetter
from taskq.errors import MessageError
from taskq.message import CRASHES, DEAD_PREFIX, DELIVERIES

#: What a list shows of a letter; its page and its document have the rest.
COLUMNS: Final = ("id", "queue", "task", "reason", "retries", "crashes", "last_at")
#: What a letter says in one line each.
FIELDS: Final = (
    *("id", "task", "queue", "reason", "detail", "retries", "crashes", "deliveries"),
    *("first_at", "last_at", "worker", "signal"),
)
#: Headers that the fields have been made of.
_IN_FIELDS: Final = frozenset({"id", "task", "retries", CRASHES, DELIVERIES})
#: How much of a body that cannot be read is shown, in bytes.
_LONGEST_BODY: Final = 1000


def row(letter: DeadLetter) -> tuple[str, ...]:
    """The letter in a table with ``COLUMNS``."""
    return tuple(_cell(getattr(letter, name)) for name in COLUMNS)


def summary(letter: DeadLetter) -> dict[str, Any]:
    """The letter's fields, for JSON."""
    return {name: getattr(letter, name) for name in FIELDS}


def document(letter: DeadLetter) -> dict[str, Any]:
    """All about the letter, for JSON."""
    return {**summary(letter), **_call(letter), "headers": _headers(letter), "traceback": letter.traceback}


def page(letter: DeadLetter) -> str:
    """All about the letter, for people."""
    lines = [f"{name:<10}  {_cell(value)}" for name, value in summary(letter).items() if value is not None]
    lines += [f"{name:<10}  {printable(as_text(value))}" for name, value in _call(letter).items()]
    lines += ["headers", *(f"    {printable(name)}: {printable(as_text(value))}" for name, value in _headers(letter).items())]
    if letter.traceback:
        trace = "\n".join(map(printable, letter.traceback.expandtabs().splitlines()))
        lines += ["traceback", textwrap.indent(trace, "    ")]
    return "\n".join(lines)


def _cell(value: str | int | datetime | None) -> str:
    if isinstance(value, datetime):
        return value.astimezone().isoformat(" ", "seconds")
    return "-" if value is None else printable(str(value))


def _headers(letter: DeadLetter) -> dict[str, Any]:
    """The headers that say something which the fields do not."""
    return {
        name: _shallow(value)
        for name, value in letter.message.headers.items()
        if value is not None and name not in _IN_FIELDS and not name.startswith(DEAD_PREFIX)
    }


def _call(letter: DeadLetter) -> dict[str, Any]:
    """The arguments; where they cannot be read, the beginning of the body, and why."""
    try:
        args, kwargs = letter.arguments()
    except MessageError as error:
        return {"unreadable": str(error), "body": letter.message.body[:_LONGEST_BODY]}
    return {"args": _shallow(args), "kwargs": _shallow(kwargs)}


def _shallow(value: Any) -> Any:
    """The value, unless it is nested so deeply that it could not be written as JSON."""
    try:
        # in a list of lists, since it will stand inside something else
        as_text([[[[value]]]], indent=2)
    except RecursionError:
        return "nested too deeply to be shown"
    return value
