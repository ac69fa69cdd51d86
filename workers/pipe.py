"""The pipe between the supervisor and a child: frames of bytes, both ways.

To the child: a delivery, undecoded, or the answer to a question. To the supervisor: that the child is ready, that it skipped a
recalled delivery, that it asks leave to begin a task which may begin only once, that it begins one that is part of a workflow,
or an outcome. A frame is whole or not there: what a dying child wrote halfway is as if never written.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator

import msgspec

from taskq.broker.interface import Delivery
from taskq.decoding import UNREADABLE, decoded, unreadable
from taskq.errors import MessageError
from taskq.workers.outcome import SUCCEEDED, Outcome

#: number, kind, redelivered, then the lengths of the queue's name, the properties and the body.
_INWARD = struct.Struct("<QB?HII")
_DELIVERY, _GRANTED, _DENIED = range(3)
#: a mark that frames of ours begin with, number, kind, microseconds that the task ran (0: it did not), length of the encoded
#: outcome, the task's number, seconds that the message had waited.
_REPORT = struct.Struct("<HQBIIHf")
_MARK = 0x9D5B
READY, SKIPPED, DONE, OUTCOME, ASKED, BEGUN = range(6)
#: What is the last that a child says of a delivery.
LAST_WORDS = frozenset({SKIPPED, DONE, OUTCOME})
_CHUNK = 1 << 18
#: What an encoded outcome may be at most. An outcome holds a message and a result, and what follows, which have limits of their
#: own; a longer frame is none, but what somebody else has written into the pipe.
LONGEST_OUTCOME = 1 << 28

#: Stands for a wait that nobody knows.
UNKNOWN = -1.0

_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Outcome).decode


def pack_delivery(number: int, delivery: Delivery) -> bytes:
    """A delivery as a frame for the child."""
    queue = delivery.queue.encode()
    properties, body = delivery.properties, delivery.body
    head = _INWARD.pack(number, _DELIVERY, delivery.redelivered, len(queue), len(properties), len(body))
    return b"".join((head, queue, properties, body))


def pack_answer(number: int, granted: bool) -> bytes:
    """The answer to a child that asked leave to begin this delivery."""
    return _INWARD.pack(number, _GRANTED if granted else _DENIED, False, 0, 0, 0)


class Inbox:
    """The child's end: the deliveries that arrive, with their numbers, until the supervisor closes the pipe."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._buffer = b""
        self._position = 0
        self._waiting: deque[tuple[int, Delivery]] = deque()
        self._answers: dict[int, bool] = {}

    def __iter__(self) -> Iterator[tuple[int, Delivery]]:
        while self._waiting or self._read():
            if self._waiting:
                yield self._waiting.popleft()

    def answer(self, number: int) -> bool:
        """Wait for the answer to the question about this delivery; deliveries that come meanwhile are kept."""
        while number not in self._answers:
            if not self._read():
                return False
        return self._answers.pop(number)

    def _read(self) -> bool:
        """One frame more; False at the end of the pipe."""
        head = _INWARD.size
        while True:
            buffer, end = self._buffer, self._position + head
            if len(buffer) >= end:
                number, kind, redelivered, queue_size, properties_size, body_size = _INWARD.unpack_from(buffer, self._position)
                middle = end + queue_size
                last = middle + properties_size + body_size
                if len(buffer) >= last:
                    self._position = last
                    if kind == _DELIVERY:
                        queue, properties = buffer[end:middle].decode(), buffer[middle : middle + properties_size]
                        body = buffer[middle + properties_size : last]
                        self._waiting.append((number, Delivery(queue, None, properties, body, redelivered)))
                    else:
                        self._answers[number] = kind == _GRANTED
                    return True
            try:
                chunk = self._pipe.recv(_CHUNK)
            except BlockingIOError:
                # A task has changed all descriptors that it could find.
                self._pipe.setblocking(True)
                continue
            if not chunk:
                return False
            self._buffer, self._position = buffer[self._position :] + chunk, 0


#: number, kind, microseconds, outcome, task, waited.
Report = tuple[int, int, int, Outcome, int, float]


def pack_report(
    number: int,
    kind: int,
    microseconds: int = 0,
    outcome: Outcome = SUCCEEDED,
    task: int = 0,
    waited: float = UNKNOWN,
) -> bytes:
    """What the child reports; an outcome with nothing to publish or record is just a number. Raises ``MessageError``.

    ``task`` is the place of the task's name, from 1, in the list that the zygote has reported; 0 where it is not there.
    """
    if outcome is SUCCEEDED:
        return _REPORT.pack(_MARK, number, kind, microseconds, 0, task, waited)
    payload = encoded(outcome)
    return _REPORT.pack(_MARK, number, OUTCOME if kind == DONE else kind, microseconds, len(payload), task, waited) + payload


def encoded(outcome: Outcome) -> bytes:
    """The outcome as it crosses the pipe; raises ``MessageError`` for one that would not arrive as what it is."""
    try:
        data = _encoder.encode(outcome)
    except UNREADABLE as error:
        raise unreadable("an outcome that was to be written", error) from error
    if len(data) > LONGEST_OUTCOME:
        raise MessageError(f"the outcome is {len(data)} bytes, over the {LONGEST_OUTCOME} that the supervisor reads")
    return data


def check(outcome: Outcome) -> None:
    """Raise ``MessageError`` for an outcome that the supervisor could not read."""
    decoded(_decode, encoded(outcome), "the outcome")


def unpack_reports(buffer: bytes) -> tuple[list[Report], bytes]:
    """The whole reports in the buffer, and the rest of the buffer.

    Raises ``MessageError`` where something else was written into the pipe than reports. What comes after it cannot be told
    apart any more, so that such a child has to be killed; none of the buffer's reports may be believed.
    """
    reports = []
    position, size, head = 0, len(buffer), _REPORT.size
    while size - position >= head:
        mark, number, kind, microseconds, length, task, waited = _REPORT.unpack_from(buffer, position)
        if mark != _MARK or kind > BEGUN or length > LONGEST_OUTCOME:
            raise MessageError("something else than the child's reports was written into its pipe")
        end = position + head + length
        if size < end:
            break
        outcome = decoded(_decode, buffer[position + head : end], "a child's report") if length else SUCCEEDED
        reports.append((number, kind, microseconds, outcome, task, waited))
        position = end
    return reports, buffer[position:]
