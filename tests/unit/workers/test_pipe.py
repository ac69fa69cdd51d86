"""Frames between supervisor and child: whole, or as if never written."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.interface import Delivery
from taskq.errors import MessageError
from taskq.message import Message, Publication
from taskq.results.store import Record
from taskq.workers.outcome import SUCCEEDED, Outcome
from taskq.workers.pipe import (
    ASKED,
    DONE,
    LONGEST_OUTCOME,
    OUTCOME,
    READY,
    SKIPPED,
    UNKNOWN,
    Inbox,
    check,
    pack_answer,
    pack_delivery,
    pack_report,
    unpack_reports,
)

FAILED = Outcome(
    "failed",
    (Publication("mail", Message(headers={"id": "1", "größe": 2, "raw": b"\xff"}, body=b"\x00\xff", priority=3), 1.5),),
    Record("id-1", "FAILURE", b"{}"),
)


def delivery(queue: str = "mail", properties: bytes = b"{}", body: bytes = b"[]", *, redelivered: bool = False) -> Delivery:
    return Delivery(queue, 7, properties, body, redelivered)


def received(chunks: Sequence[bytes]) -> list[tuple[int, str, bytes, bytes, bool]]:
    """What a child reads when these bytes arrive one after the other and the pipe is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send() -> None:
        with ours:
            for chunk in chunks:
                ours.send(chunk)

    sender = threading.Thread(target=send)
    sender.start()
    with theirs:
        read = [(n, d.queue, d.properties, d.body, d.redelivered) for n, d in Inbox(theirs)]
    sender.join()
    return read


def test_deliveries_split_at_every_byte() -> None:
    other = delivery("größe", b"\x00props", b"x" * 50, redelivered=True)
    data = pack_delivery(1, delivery()) + pack_delivery(2**40, other)
    whole = [(1, "mail", b"{}", b"[]", False), (2**40, "größe", b"\x00props", b"x" * 50, True)]
    assert received([data]) == whole
    assert received([data[index : index + 1] for index in range(len(data))]) == whole
    for cut in range(1, len(data)):
        assert received([data[:cut], data[cut:]]) == whole


def test_a_delivery_that_was_cut_off_is_as_if_never_sent() -> None:
    first, second = pack_delivery(1, delivery()), pack_delivery(2, delivery())
    for cut in range(1, len(second)):
        assert [number for number, *_ in received([first + second[:cut]])] == [1]


def test_an_empty_delivery() -> None:
    assert received([pack_delivery(1, delivery("", b"", b""))]) == [(1, "", b"", b"", False)]


def test_reports_split_at_every_byte() -> None:
    failed, succeeded = pack_report(5, DONE, 12, FAILED, 3, 0.5), pack_report(7, DONE, 99, SUCCEEDED, 0xFFFF, 86_400.0)
    data = pack_report(0, READY) + failed + pack_report(6, SKIPPED) + succeeded
    whole = [
        (0, READY, 0, SUCCEEDED, 0, UNKNOWN),
        (5, OUTCOME, 12, FAILED, 3, 0.5),
        (6, SKIPPED, 0, SUCCEEDED, 0, UNKNOWN),
        (7, DONE, 99, SUCCEEDED, 0xFFFF, 86_400.0),
    ]
    for cut in range(len(data) + 1):
        first, rest = unpack_reports(data[:cut])
        second, rest = unpack_reports(rest + data[cut:])
        assert first + second == whole
        assert rest == b""


def test_a_report_that_was_cut_off_is_as_if_never_written() -> None:
    whole, last = pack_report(1, DONE, 5), pack_report(2, DONE, 5, FAILED)
    for cut in range(len(last)):
        reports, rest = unpack_reports(whole + last[:cut])
        assert [number for number, *_ in reports] == [1]
        assert rest == last[:cut]


@pytest.mark.parametrize("junk", [b"hello\n", b"\x00", b"x" * 1000, pack_report(1, DONE, 5)[:10], b"\xff" * 30])
@pytest.mark.parametrize("before", [b"", pack_report(1, DONE, 5)])
def test_what_a_task_writes_into_the_pipe_is_no_report(before: bytes, junk: bytes) -> None:
    with pytest.raises(MessageError, match="something else than the child's reports"):
        unpack_reports(before + junk + pack_report(2, DONE, 5, FAILED) * 2)


def test_a_report_that_is_longer_than_any_or_cannot_be_read_is_none() -> None:
    whole = pack_report(2, DONE, 5, FAILED)
    for length in (LONGEST_OUTCOME + 1, 2**32 - 1):
        with pytest.raises(MessageError):
            unpack_reports(whole[:15] + length.to_bytes(4, "little") + whole[19:])
    with pytest.raises(MessageError, match="a child's report cannot be read"):
        unpack_reports(whole[:-1] + b"\xc1")


def test_an_outcome_that_would_not_arrive_as_it_is_is_refused() -> None:
    for odd in (Outcome("failed", record=Record("\udce9", "FAILURE", b"{}")), Outcome("done")):  # type: ignore[arg-type]
        with pytest.raises(MessageError):
            check(odd)
    check(FAILED)


@given(st.binary(max_size=200))
def test_whatever_is_in_the_pipe_raises_nothing_else(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        unpack_reports(data)


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_any_delivery_arrives_as_it_was(queue: str, properties: bytes, body: bytes, redelivered: bool) -> None:
    sent = delivery(queue, properties, body, redelivered=redelivered)
    assert received([pack_delivery(3, sent)]) == [(3, queue, properties, body, redelivered)]


def test_an_answer_is_found_among_the_deliveries_and_they_are_kept() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = [
            pack_delivery(1, delivery()),
            pack_delivery(2, delivery()),
            pack_answer(1, True),
            pack_delivery(3, delivery()),
        ]
        ours.sendall(b"".join([*frames, pack_answer(3, False)]))
        inbox = Inbox(theirs)
        numbers = iter(inbox)
        assert next(numbers)[0] == 1
        assert inbox.answer(1)
        assert [next(numbers)[0] for _ in range(2)] == [2, 3]
        assert not inbox.answer(3)
        ours.shutdown(socket.SHUT_WR)
        assert not inbox.answer(4), "whoever would answer is gone"
        assert list(numbers) == []


def test_an_outcome_without_a_record_or_publications_is_still_an_outcome() -> None:
    reports, _ = unpack_reports(pack_report(1, ASKED, 0, Outcome("begun")) + pack_report(2, DONE, 0, Outcome("failed")))
    assert [(kind, outcome) for _, kind, _, outcome, *_ in reports] == [(ASKED, Outcome("begun")), (OUTCOME, Outcome("failed"))]
