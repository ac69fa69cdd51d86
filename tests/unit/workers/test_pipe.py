"""Frames between supervisor and child: whole, or as if never written."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.interface import Delivery
from taskq.message import Message, Publication
from taskq.results.store import Record
from taskq.workers.outcome import GIVEN_BACK, SUCCEEDED, Outcome
from taskq.workers.pipe import DONE, OUTCOME, READY, SKIPPED, deliveries, pack_delivery, pack_report, unpack_reports

FAILED = Outcome(
    "failed",
    (Publication("mail", Message(headers={"id": "1", "größe": 2, "raw": b"\xff"}, body=b"\x00\xff", priority=3), 1.5),),
    Record("id-1", "FAILURE", b"{}"),
)


def delivery(queue: str = "mail", properties: bytes = b"{}", body: bytes = b"[]", *, redelivered: bool = False) -> Delivery:
    return Delivery(queue, 7, properties, body, redelivered)


def received(chunks: Sequence[bytes]) -> list[tuple[int, str, bytes, bytes, bool, int]]:
    """What a child reads when these bytes arrive one after the other and the pipe is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send() -> None:
        with ours:
            for chunk in chunks:
                ours.send(chunk)

    sender = threading.Thread(target=send)
    sender.start()
    with theirs:
        read = [(n, d.queue, d.properties, d.body, d.redelivered, d.crashes) for n, d in deliveries(theirs)]
    sender.join()
    return read


def test_deliveries_split_at_every_byte() -> None:
    crashed = delivery("größe", b"\x00props", b"x" * 50, redelivered=True)
    crashed.crashes = 2
    data = pack_delivery(1, delivery()) + pack_delivery(2**40, crashed)
    whole = [(1, "mail", b"{}", b"[]", False, 0), (2**40, "größe", b"\x00props", b"x" * 50, True, 2)]
    assert received([data]) == whole
    assert received([data[index : index + 1] for index in range(len(data))]) == whole
    for cut in range(1, len(data)):
        assert received([data[:cut], data[cut:]]) == whole


def test_a_delivery_that_was_cut_off_is_as_if_never_sent() -> None:
    first, second = pack_delivery(1, delivery()), pack_delivery(2, delivery())
    for cut in range(1, len(second)):
        assert [number for number, *_ in received([first + second[:cut]])] == [1]


def test_an_empty_delivery() -> None:
    assert received([pack_delivery(1, delivery("", b"", b""))]) == [(1, "", b"", b"", False, 0)]


def test_reports_split_at_every_byte() -> None:
    data = pack_report(0, READY) + pack_report(5, DONE, 12, FAILED) + pack_report(6, SKIPPED) + pack_report(7, DONE, 99)
    whole = [(0, READY, 0, SUCCEEDED), (5, OUTCOME, 12, FAILED), (6, SKIPPED, 0, SUCCEEDED), (7, DONE, 99, SUCCEEDED)]
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


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200), st.booleans(), st.integers(0, 2**16 - 1))
def test_any_delivery_arrives_as_it_was(queue: str, properties: bytes, body: bytes, redelivered: bool, crashes: int) -> None:
    sent = delivery(queue, properties, body, redelivered=redelivered)
    sent.crashes = crashes
    assert received([pack_delivery(3, sent)]) == [(3, queue, properties, body, redelivered, crashes)]


def test_an_outcome_without_a_record_or_publications_is_still_an_outcome() -> None:
    reports, _ = unpack_reports(pack_report(1, DONE, 0, GIVEN_BACK) + pack_report(2, DONE, 0, Outcome("failed")))
    assert [outcome for *_, outcome in reports] == [GIVEN_BACK, Outcome("failed")]
