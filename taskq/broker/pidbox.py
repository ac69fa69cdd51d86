"""Remote control: commands to workers and their answers, on the wire what Kombu's pidbox and Celery make of them.

::

    caller ──► fanout exchange celery.pidbox ──► every worker, each of which decides whether it is meant
    caller ◄── direct exchange reply.celery.pidbox ◄── {node: answer}

Nothing of it is kept: a worker that is away hears nothing, and an answer that comes late is dropped. What has to reach those
that are away is a control entry instead (``taskq.control``). Celery's own clients and workers use the same exchanges.
"""

from __future__ import annotations

import fnmatch
import select
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from taskq import log
from taskq.broker.interface import Line
from taskq.decoding import UNREADABLE, unreadable
from taskq.errors import MessageError, UnsupportedFeature
from taskq.message import JSON, Message
from taskq.serialization import decode

COMMANDS, REPLIES, EVENTS = "celery.pidbox", "reply.celery.pidbox", "celeryev"
#: The kind of each exchange, as Celery declares them.
KINDS: Mapping[str, str] = {COMMANDS: "fanout", EVENTS: "topic"}
#: The names of taskq's workers: Celery's on the same broker hear what is said to all, and are not meant.
EVERY_WORKER = "taskq@*"
#: How much clocks may differ before a command that nobody waits for any more is taken for one, in seconds.
CLOCK_SKEW = 60.0
#: The longest that tickets, routing keys and patterns may be, in bytes: AMQP's limit for names.
LONGEST_NAME = 255
#: The longest answer, in bytes: RabbitMQ breaks the connection for one that is longer than it allows, 16 MB by default.
LONGEST_ANSWER = 8_000_000
#: A clock beyond this is nobody's: whatever carries ours further has to hold it.
LAST_MOMENT = 2**53

logger = log.get_logger("taskq.remote")

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
        """Somebody else was there already, if this is a moment at all."""
        self.value = max(self.value, other if isinstance(other, int) and other < LAST_MOMENT else 0) + 1


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
        """Whether this node is to obey.

        Raises ``UnsupportedFeature`` for any pattern but a short glob, whose matching takes time in proportion to its length:
        a regular expression may take for ever.
        """
        if self.destination:
            return node in self.destination
        if not self.pattern or not self.matcher:
            return True
        if self.matcher != "glob" or len(self.pattern) > LONGEST_NAME:
            raise UnsupportedFeature(
                f"a taskq worker takes no {self.matcher} pattern of {len(self.pattern)} characters; name the workers in"
                f" destination=, or give a glob of at most {LONGEST_NAME} characters"
            )
        return fnmatch.fnmatchcase(node, self.pattern)


def read_command(message: Message) -> Command:
    """The command in the message; raises ``MessageError`` where it is none, or could not be answered."""
    if message.content_type != JSON:
        raise MessageError(f"the content type is {message.content_type!r}, not {JSON!r}")
    body = decode(message.body, message.content_encoding)
    try:
        command = msgspec.convert(body, Command)
        names = [command.method, command.ticket or ""]
        if (address := command.reply_to) is not None:
            names.append(address.routing_key)
            if address.exchange != REPLIES:
                # The exchange is declared before it is published to: one of another kind would break the connection.
                raise MessageError(f"answers go to the exchange {REPLIES!r}, not to {address.exchange[:LONGEST_NAME]!a}")
        if any(len(name.encode()) > LONGEST_NAME for name in names):
            raise MessageError(f"its method, ticket or routing key is longer than {LONGEST_NAME} bytes")
    except UNREADABLE as error:
        raise unreadable("a command", error) from None
    return command


class Mailbox:
    """A worker's end of the line: ``turn`` returns the commands that mean it, ``answer`` sends what it says to one.

    Whatever a command says, these two raise nothing but ``BrokerError``, for a line that broke.
    """

    def __init__(self, line: Line, node: str, clock: Clock) -> None:
        self._line = line
        self._node = node
        self._clock = clock
        self._arrived: list[Command] = []
        self._refused: list[tuple[Command, UnsupportedFeature]] = []
        # Unlike Celery's, the queue's name is new for each connection: RabbitMQ may yet have to notice that the last one broke.
        line.listen(COMMANDS, KINDS[COMMANDS], f"{node}.{uuid.uuid4().hex[:8]}.{COMMANDS}", "", self._take)

    def fileno(self) -> int:
        """Readable when ``turn`` has something to do."""
        return self._line.fileno()

    def turn(self) -> tuple[list[Command], float]:
        """The commands that have come, and in how many seconds at the latest to call again. Raises ``BrokerError``."""
        seconds = self._line.turn()
        arrived, self._arrived = self._arrived, []
        while self._refused:
            command, refusal = self._refused.pop()
            logger.warning("command_refused", method=command.method, error=str(refusal))
            self.answer(command, {"error": str(refusal)})
        return arrived, seconds

    def answer(self, command: Command, answer: Any) -> None:
        """Tell whoever gave the command, if that was asked for."""
        if command.reply_to is not None:
            headers = {"ticket": command.ticket, "clock": self._clock.forward()}
            self._line.publish(REPLIES, "direct", command.reply_to.routing_key, self._encoded(answer), headers)

    def _encoded(self, answer: Any) -> bytes:
        try:
            body = _encode({self._node: answer})
        except UNREADABLE as error:
            return _encode({self._node: {"error": f"the answer cannot be written: {error!a}"}})
        if len(body) > LONGEST_ANSWER:
            return _encode({self._node: {"error": f"the answer has {len(body)} bytes, which are too many"}})
        return body

    def report(self, events: Sequence[Mapping[str, Any]], key: str) -> int:
        """Send these events to whoever listens, in one message; a single one as itself. Returns how many cannot be written."""
        written = [text for event in events if (text := encoded_event(event)) is not None]
        if written:
            body = written[0] if len(written) == 1 else b"[%s]" % b",".join(written)
            self._line.publish(EVENTS, KINDS[EVENTS], key, body, {"hostname": self._node})
        return len(events) - len(written)

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
            command = read_command(message)
        except MessageError as error:
            # Anybody may write to the exchange, and whoever wrote this cannot be answered.
            logger.debug("command_unreadable", error=str(error))
            return
        try:
            if command.means(self._node):
                self._arrived.append(command)
        except UnsupportedFeature as refusal:
            self._refused.append((command, refusal))


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


def encoded_event(event: Mapping[str, Any]) -> bytes | None:
    """The event as JSON; None where that is impossible, as of text in a message that UTF-8 cannot carry."""
    try:
        return _encode(event)
    except UNREADABLE:
        return None
