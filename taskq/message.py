"""A message: one call on its way, in Celery's message protocol 2.

The format is Celery's (https://docs.celeryq.dev/en/stable/internals/protocol.html): what a call is stands in the headers,
its arguments in the JSON body ``[args, kwargs, embed]``. Headers that begin with ``tq-`` are taskq's own.
Values here are frozen; a change is a new value.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

JSON = "application/json"

#: The headers that a call consists of.
PROTOCOL_HEADERS = frozenset(
    {
        "lang",
        "task",
        "id",
        "eta",
        "expires",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "root_id",
        "parent_id",
        "origin",
        "ignore_result",
    }
)
#: Counters stop here, so that whoever adds some of them, or stores one, need not ask how large it is.
HIGHEST_COUNT = 2**31 - 1

#: How often the process that ran this message died (guarantee 4).
CRASHES = "tq-crashes"
#: How often a worker died while it ran this message and others: one of them is to blame, nobody knows which.
SUSPECTED = "tq-suspected"
#: How often this message came back although nobody gave it back, and nothing proved that anybody had died.
RETURNS = "tq-returns"
#: Since when (seconds since the epoch) this message may only run with nothing else in its worker's custody.
ALONE = "tq-alone"
#: When (seconds since the epoch) this message came back although its task, which runs at most once, was seen to run.
SEEN_RUNNING = "tq-seen-running"
#: How often the broker handed this message out before it was last published; graceful returns included.
DELIVERIES = "tq-deliveries"
#: How many attempts there had been when the message was replayed from the dead letters, and began anew.
ATTEMPTS = "tq-attempts"
#: The attempts so far, oldest first; see ``taskq.attempt.Past``.
HISTORY = "tq-history"
#: When a worker first met this message without knowing its task, as seconds since the epoch.
UNKNOWN_SINCE = "tq-unknown-since"

#: Since when this message could have run, as seconds since the epoch: since it was sent, but for its delay.
SENT = "tq-sent"

#: Which tick of which schedule this message is, and which copy of it, where there may be several: see ``taskq.results.ledger``.
TICK = "tq-tick"
TICK_COPY = "tq-tick-copy"

#: A dead letter says in these headers why it is dead, beside the headers that the message had.
DEAD_PREFIX = "tq-dead-"
DEAD_REASON = f"{DEAD_PREFIX}reason"
DEAD_DETAIL = f"{DEAD_PREFIX}detail"
DEAD_QUEUE = f"{DEAD_PREFIX}queue"
DEAD_WORKER = f"{DEAD_PREFIX}worker"
DEAD_TRACEBACK = f"{DEAD_PREFIX}traceback"
DEAD_SIGNAL = f"{DEAD_PREFIX}signal"
#: When it was dead-lettered, and when it first failed, as seconds since the epoch.
DEAD_AT = f"{DEAD_PREFIX}at"
DEAD_FIRST = f"{DEAD_PREFIX}first"


#: The latest moment that a message may name, in seconds since the epoch: the end of Python's calendar, about.
LATEST_MOMENT = 2.6e11


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
    def id(self) -> str | None:
        """What the task is known by: the header ``id``, where that is a text."""
        task_id = self.headers.get("id")
        return task_id if isinstance(task_id, str) else None

    @property
    def crashes(self) -> int:
        """How often the process that ran this message had died when it was last published."""
        return self.count(CRASHES)

    @property
    def attempt(self) -> int:
        """The ordinal of the next attempt, which grows with whatever had the message published again: the fence of results."""
        return min(HIGHEST_COUNT, 1 + self.round + self.count(CRASHES) + self.count(DELIVERIES))

    @property
    def round(self) -> int:
        """Which round this is, from 0: a retry or a replay begins another; a crash, a return or a second copy does not."""
        return self.count(ATTEMPTS) + self.count("retries")

    def count(self, header: str) -> int:
        """The counter in this header, ``HIGHEST_COUNT`` at most; 0 where there is none, or something that is no counter."""
        value = self.headers.get(header)
        return min(value, HIGHEST_COUNT) if type(value) is int and value > 0 else 0

    def moment(self, header: str) -> float | None:
        """The moment in this header, in seconds since the epoch; None where there is none, or something that is none."""
        value = self.headers.get(header)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        # Compared first: what a message says may be a number that no float can hold.
        return float(value) if 0 <= value <= LATEST_MOMENT else None

    def with_headers(self, **headers: Any) -> Message:
        """A copy with these headers added; ``_`` in a name stands for ``-``."""
        added = {name.replace("_", "-"): value for name, value in headers.items()}
        return msgspec.structs.replace(self, headers={**self.headers, **added})

    def without(self, *headers: str) -> Message:
        """A copy that lacks these headers."""
        return msgspec.structs.replace(self, headers={k: v for k, v in self.headers.items() if k not in headers})


def undecodable(body: bytes) -> Message:
    """What there is of a message whose headers cannot be read: its body, for the dead letter."""
    return Message(headers={}, body=body, content_type=None, content_encoding=None)


class Publication(msgspec.Struct, frozen=True):
    """A message and where it goes: the queue, and after how many seconds (0: at once).

    ``first`` is for a message that has waited its turn already: it goes ahead of those that wait in the queue. A ``reply`` goes
    to the queue of somebody who waits for it; where that is gone, the reply is dropped without an error.
    """

    queue: str
    message: Message
    delay: float = 0.0
    first: bool = False
    reply: bool = False


#: What the names of queues begin with that are there for a moment, to try whether a broker does what it should.
TRIAL_PREFIX = "taskq.trial."


def trial_queue() -> str:
    """The name of a queue that nobody else has, to be deleted by whoever declared it. It has no dead letters."""
    return f"{TRIAL_PREFIX}{uuid.uuid4().hex}"


def dead_letter_queue(queue: str) -> str:
    """The name of the queue that holds the dead letters of ``queue``."""
    return f"{queue}.dead"
