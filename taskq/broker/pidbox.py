"""Remote control: commands to workers and their answers, on the wire what Kombu's pidbox and Celery make of them.

::

    caller ──► fanout exchange celery.pidbox ──► every worker, each of which decides whether it is meant
    caller ◄── direct exchange reply.celery.pidbox ◄── {node: answer}

Nothing of it is kept: a worker that is away hears nothing, and an answer that comes late is dropped. What has to reach those
that are away is a control entry instead (``taskq.control``). Celery's own clients and workers use the same exchanges.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import select
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from taskq.broker.interface import Line
from taskq.decoding import UNREADABLE
from taskq.errors import MessageError
from taskq.message import JSON, Message
from taskq.serialization import decode

COMMANDS, REPLIES, EVENTS = "celery.pidbox", "reply.celery.pidbox", "celeryev"
#: The kind of each exchange, as Celery declares them.
KINDS: Mapping[str, str] = {COMMANDS: "fanout", EVENTS: "topic"}
#: The names of taskq's workers: Celery's on the same broker hear what is said to all, and are not meant.
EVERY_WORKER = "taskq@*"
#: How much clocks may differ before a command that nobody waits for any more is taken for one, in seconds.
CLOCK_SKEW = 60.0

_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Clock:
    """Lamport's: grows with what is sent, and past what others have sent. Celery orders events by it."""

    def __init__(self) -> None:
        self.value = 0

    def forward(self) -> int:
        """The next moment."""
        self.value += 1
        return self.value

    def adjust(self, other: Any) -> None:
        """Somebody else was there already."""
        self.value = max(self.value, other if isinstance(other, int) else 0) + 1


class Address(msgspec.Struct, frozen=True):
    """Where an answer goes."""

    exchange: str
    routing_key: str


class Command(msgspec.Struct, frozen=True):
    """A command as it stands in its message. It means those nodes in ``destination``, or those that the pattern matches."""

    method: str
    arguments: dict[str, Any] | None = None
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    ticket: str | None = None
    reply_to: Address | None = None

    def means(self, node: str) -> bool:
        """Whether this node is to obey."""
        if self.destination:
            return node in self.destination
        match self.pattern, self.matcher:
            case (None | "", _) | (_, None | ""):
                return True
            case str() as pattern, "glob":
                return fnmatch.fnmatchcase(node, pattern)
            case str() as pattern, "pcre":
                with contextlib.suppress(re.error):
                    return re.match(pattern, node) is not None
        return False


class Mailbox:
    """A worker's end of the line: ``turn`` returns the commands that mean it, ``answer`` sends what it says to one."""

    def __init__(self, line: Line, node: str, clock: Clock) -> None:
        self._line = line
        self._node = node
        self._clock = clock
        self._arrived: list[Command] = []
        # Unlike Celery's, the queue's name is new for each connection: RabbitMQ may yet have to notice that the last one broke.
        line.listen(COMMANDS, KINDS[COMMANDS], f"{node}.{uuid.uuid4().hex[:8]}.{COMMANDS}", "", self._take)

    def fileno(self) -> int:
        """Readable when ``turn`` has something to do."""
        return self._line.fileno()

    def turn(self) -> tuple[list[Command], float]:
        """The commands that have come, and in how many seconds at the latest to call again. Raises ``BrokerError``."""
        seconds = self._line.turn()
        arrived, self._arrived = self._arrived, []
        return arrived, seconds

    def answer(self, command: Command, answer: Any) -> None:
        """Tell whoever gave the command, if that was asked for."""
        if command.reply_to is not None:
            headers = {"ticket": command.ticket, "clock": self._clock.forward()}
            body = _encode({self._node: answer})
            self._line.publish(command.reply_to.exchange, "direct", command.reply_to.routing_key, body, headers)

    def report(self, events: Sequence[Mapping[str, Any]], key: str) -> None:
        """Send these events to whoever listens, in one message; a single one as itself."""
        body = _encode(events[0] if len(events) == 1 else events)
        self._line.publish(EVENTS, KINDS[EVENTS], key, body, {"hostname": self._node})

    def close(self) -> None:
        """Hear nothing any more."""
        self._line.close()

    def _take(self, message: Message) -> None:
        self._clock.adjust(message.headers.get("clock"))
        expires = message.headers.get("expires")
        if isinstance(expires, (int, float)) and 0 < expires < time.time() - CLOCK_SKEW:
            # It waited while this process was stopped: whoever gave it has long believed that nobody heard.
            return
        try:
            if message.content_type != JSON:
                return
            command = msgspec.convert(decode(message.body, message.content_encoding), Command)
        except (MessageError, *UNREADABLE):
            return
        if command.means(self._node):
            self._arrived.append(command)


class Caller:
    """The other end: gives commands and collects the answers. Belongs to one thread."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._address = Address(REPLIES, uuid.uuid4().hex)
        self._ticket = ""
        self._answers: dict[str, Any] = {}
        line.listen(REPLIES, "direct", f"{self._address.routing_key}.{REPLIES}", self._address.routing_key, self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ask(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        nodes: Sequence[str] = (),
        pattern: str = "",
        timeout: float = 1.0,
    ) -> dict[str, Any]:
        """The answers by node of those that answer within ``timeout`` seconds: these nodes, or those that the pattern matches.

        It returns earlier once all have answered, where that can be known. Raises ``BrokerError``.
        """
        self._ticket, self._answers = uuid.uuid4().hex, {}
        command = Command(
            method,
            dict(arguments or {}),
            list(nodes) or None,
            pattern or None,
            "glob" if pattern else None,
            self._ticket,
            self._address,
        )
        expected = len(nodes) or self._line.listeners(COMMANDS)
        headers = {"clock": 1, "expires": time.time() + timeout}
        self._line.publish(COMMANDS, KINDS[COMMANDS], "", _encode(command), headers)
        deadline = time.monotonic() + timeout
        while True:
            seconds, left = self._line.turn(), deadline - time.monotonic()
            if left <= 0.0 or (expected is not None and len(self._answers) >= expected):
                return self._answers
            select.select([self._line.fileno()], [], [], min(seconds, left))

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _take(self, message: Message) -> None:
        if message.headers.get("ticket") != self._ticket:
            return
        try:
            answer = decode(message.body, message.content_encoding)
        except MessageError:
            return
        if isinstance(answer, dict):
            self._answers.update(answer)
