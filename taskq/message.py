"""A message: one call on its way, in Celery's message protocol 2.

The format is Celery's (https://docs.celeryq.dev/en/stable/internals/protocol.html): what a call is stands in the headers,
its arguments in the JSON body ``[args, kwargs, embed]``. Headers that begin with ``tq-`` are taskq's own.
Values here are frozen; a change is a new value.
"""

from __future__ import annotations

from typing import Any

import msgspec

JSON = "application/json"

#: How often the process that ran this message died (guarantee 4).
CRASHES = "tq-crashes"
#: When a worker first met this message without knowing its task, as seconds since the epoch.
UNKNOWN_SINCE = "tq-unknown-since"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One call on its way: headers, the encoded body and the few properties that brokers look at."""

    headers: dict[str, Any]
    body: bytes
    content_type: str | None = JSON
    content_encoding: str | None = "utf-8"
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None

    @property
    def crashes(self) -> int:
        """How often the process that ran this message had died when it was last published."""
        value = self.headers.get(CRASHES)
        return value if isinstance(value, int) and value > 0 else 0

    def with_headers(self, **headers: Any) -> Message:
        """A copy with these headers added; ``_`` in a name stands for ``-``."""
        added = {name.replace("_", "-"): value for name, value in headers.items()}
        return msgspec.structs.replace(self, headers={**self.headers, **added})


def undecodable(body: bytes) -> Message:
    """What there is of a message whose headers cannot be read: its body, for the dead letter."""
    return Message(headers={}, body=body, content_type=None, content_encoding=None)


class Publication(msgspec.Struct, frozen=True):
    """A message and where it goes: the queue, and after how many seconds (0: at once)."""

    queue: str
    message: Message
    delay: float = 0.0


def dead_letter_queue(queue: str) -> str:
    """The name of the queue that holds the dead letters of ``queue``."""
    return f"{queue}.dead"
