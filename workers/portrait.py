"""Portraits: what remote control and events say of a message in a worker's hands, in Celery's words.

This is the only part of the supervisor's process that decodes messages nobody has to publish again, so it is done outside the
loop. Arguments and results may be anybody's secrets: they are shown where the setting ``show_arguments`` says so, cut short,
and a header ``argsrepr`` or ``kwargsrepr`` is shown in their place, as Celery's clients use them to hide what is sensitive.
"""

from __future__ import annotations

from typing import Any

from taskq.broker.interface import Decode
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
    """Reads messages of one worker's broker; ``worker`` is the worker's name."""

    def __init__(self, read: Decode, worker: str, *, show_arguments: bool) -> None:
        self._read = read
        self._worker = worker
        self._show = show_arguments

    def message(self, held: Held) -> Message:
        """The message, or what there is of one that cannot be read."""
        try:
            return self._read(held.properties, held.body)
        except MessageError:
            return undecodable(held.body)

    def info(self, held: Held, child: Child | None = None) -> dict[str, Any]:
        """What ``celery inspect active`` and ``reserved`` say of a task."""
        message = self.message(held)
        args, kwargs = self.arguments(message)
        return {
            "id": message.headers.get("id"),
            "name": message.headers.get("task"),
            "args": args,
            "kwargs": kwargs,
            "type": message.headers.get("task"),
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
        shown = [message.headers.get(name) for name in ("argsrepr", "kwargsrepr")]
        if not all(isinstance(text, str) for text in shown):
            body: Any = None
            try:
                body = decode(message.body, message.content_encoding)
            except MessageError as error:
                return cut(str(error)), ""
            own = body[:2] if isinstance(body, list) and len(body) >= 2 else (body, None)
            shown = [text if isinstance(text, str) else repr(value) for text, value in zip(shown, own, strict=True)]
        return cut(str(shown[0])), cut(str(shown[1]))

    def result(self, record: Record) -> str:
        """What a task has returned, out of its record."""
        return cut(repr(record.described().get("result"))) if self._show else HIDDEN


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, cut short where it is long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
