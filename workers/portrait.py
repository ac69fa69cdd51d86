"""Portraits: what remote control and events say of a message in a worker's hands, in Celery's words.

This is the only part of the supervisor's process that decodes messages nobody has to publish again, so it is done outside the
loop. Arguments and results may be anybody's secrets: they are shown where the setting ``show_arguments`` says so, cut short,
and a header ``argsrepr`` or ``kwargsrepr`` is shown in their place, as Celery's clients use them to hide what is sensitive.
"""

from __future__ import annotations

from typing import Any

from taskq.broker.interface import Decode
from taskq.decoding import UNREADABLE
from taskq.errors import MessageError
from taskq.message import Message, undecodable
from taskq.results.store import Record
from taskq.serialization import decode
from taskq.workers.snapshot import Child
from taskq.workers.tap import Held, wall

#: The longest text of arguments, results and errors, in characters.
LONGEST = 1024
HIDDEN = "(not shown)"


class Painter:
    """Reads messages of one worker's broker; ``worker`` is the worker's name. Whatever a message holds, nothing is raised."""

    def __init__(self, read: Decode, worker: str, *, show_arguments: bool) -> None:
        self._read = read
        self._worker = worker
        self._show = show_arguments

    def message(self, held: Held) -> Message:
        """The message, or what there is of one that cannot be read."""
        try:
            return self._read(held.properties, held.body)
        except (MessageError, *UNREADABLE):
            return undecodable(held.body)

    def info(self, held: Held, child: Child | None = None) -> dict[str, Any]:
        """What ``celery inspect active`` and ``reserved`` say of a task."""
        message = self.message(held)
        args, kwargs = self.arguments(message)
        return {
            "id": text_in(message, "id"),
            "name": text_in(message, "task"),
            "args": args,
            "kwargs": kwargs,
            "type": text_in(message, "task"),
            "hostname": self._worker,
            "time_start": None if child is None else wall(child.since),
            "acknowledged": False,
            "delivery_info": {
                "exchange": "",
                "routing_key": held.queue,
                "priority": message.priority,
                "redelivered": held.redelivered,
            },
            "worker_pid": None if child is None else child.pid,
        }

    def arguments(self, message: Message) -> tuple[str, str]:
        """The arguments and the keyword arguments as text."""
        if not self._show:
            return HIDDEN, HIDDEN
        given = [text_in(message, name) for name in ("argsrepr", "kwargsrepr")]
        if None not in given:
            return str(given[0]), str(given[1])
        body: Any = None
        try:
            body = decode(message.body, message.content_encoding)
        except MessageError as error:
            return cut(str(error)), ""
        own = body[:2] if isinstance(body, list) and len(body) >= 2 else (body, None)
        args, kwargs = (text or shown(value) for text, value in zip(given, own, strict=True))
        return args, kwargs

    def result(self, record: Record) -> str:
        """What a task has returned, out of its record."""
        return shown(record.described().get("result")) if self._show else HIDDEN


def text_in(message: Message, header: str) -> str | None:
    """The text in the message's header, cut short; None where there is none, or something that is no text."""
    value = message.headers.get(header)
    return cut(value) if isinstance(value, str) else None


def shown(value: Any) -> str:
    """A JSON value as ``repr`` writes it, cut short."""
    try:
        return cut(repr(value))
    except (RecursionError, ValueError):
        return f"<a {type(value).__name__} that cannot be shown>"


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, cut short where it is long, in characters that can be written."""
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
