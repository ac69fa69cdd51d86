"""The pipe between the supervisor and a child: frames of bytes, both ways.

To the child: a delivery, undecoded. To the supervisor: that the child is ready, that it skipped a recalled delivery, or an
outcome. A frame is whole or not there: what a dying child wrote halfway is as if never written.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import msgspec

from taskq.broker.interface import Delivery
from taskq.workers.outcome import SUCCEEDED, Outcome

#: number, crashes, redelivered, then the lengths of the queue's name, the properties and the body.
_DELIVERY = struct.Struct("<QH?HII")
#: number, kind, microseconds that the task ran, length of the encoded outcome.
_REPORT = struct.Struct("<QBII")
READY, SKIPPED, DONE, OUTCOME = range(4)
_CHUNK = 1 << 18

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Outcome)


def pack_delivery(number: int, delivery: Delivery) -> bytes:
    """A delivery as a frame for the child."""
    queue = delivery.queue.encode()
    properties, body = delivery.properties, delivery.body
    head = _DELIVERY.pack(number, delivery.crashes, delivery.redelivered, len(queue), len(properties), len(body))
    return b"".join((head, queue, properties, body))


def deliveries(pipe: socket.socket) -> Iterator[tuple[int, Delivery]]:
    """The deliveries that arrive, with their numbers, until the supervisor closes the pipe."""
    buffer, position = b"", 0
    head = _DELIVERY.size
    while True:
        end = position + head
        if len(buffer) >= end:
            number, crashes, redelivered, queue_size, properties_size, body_size = _DELIVERY.unpack_from(buffer, position)
            middle = end + queue_size
            last = middle + properties_size + body_size
            if len(buffer) >= last:
                delivery = Delivery(
                    buffer[end:middle].decode(),
                    None,
                    buffer[middle : middle + properties_size],
                    buffer[middle + properties_size : last],
                    redelivered,
                )
                delivery.crashes = crashes
                position = last
                yield number, delivery
                continue
        chunk = pipe.recv(_CHUNK)
        if not chunk:
            return
        buffer, position = buffer[position:] + chunk, 0


def pack_report(number: int, kind: int, microseconds: int = 0, outcome: Outcome = SUCCEEDED) -> bytes:
    """What the child reports; an outcome with nothing to publish or record is just a number."""
    if outcome is SUCCEEDED:
        return _REPORT.pack(number, kind, microseconds, 0)
    payload = _encoder.encode(outcome)
    return _REPORT.pack(number, OUTCOME, microseconds, len(payload)) + payload


def unpack_reports(buffer: bytes) -> tuple[list[tuple[int, int, int, Outcome]], bytes]:
    """The whole reports in the buffer as (number, kind, microseconds, outcome), and the rest of the buffer."""
    reports = []
    position, size, head = 0, len(buffer), _REPORT.size
    while size - position >= head:
        number, kind, microseconds, length = _REPORT.unpack_from(buffer, position)
        end = position + head + length
        if size < end:
            break
        outcome = _decoder.decode(buffer[position + head : end]) if length else SUCCEEDED
        reports.append((number, kind, microseconds, outcome))
        position = end
    return reports, buffer[position:]
