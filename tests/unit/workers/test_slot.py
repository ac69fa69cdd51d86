"""A slot, with the test in the place of the child."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taskq.broker.interface import Delivery
from taskq.workers import note
from taskq.workers.pipe import ASKED, DONE, READY, SKIPPED, pack_report
from taskq.workers.slot import Slot


@pytest.fixture
def slot_and_child() -> Iterator[tuple[Slot, socket.socket]]:
    descriptor = note.create(1)
    slot = Slot(0, note.Note(descriptor, 0))
    os.close(descriptor)
    mine, child = socket.socketpair()
    mine.setblocking(False)
    zygote: Any = SimpleNamespace(tasks=("mail",))
    slot.open(cast(Any, zygote), mine, os.open(os.devnull, os.O_RDONLY))
    yield slot, child
    slot.hang_up()
    child.close()


def delivery() -> Delivery:
    return Delivery("mail", 7, b"{}", b"[]", False)


def test_a_child_with_recalled_deliveries_before_it_is_not_idle(slot_and_child: tuple[Slot, socket.socket]) -> None:
    slot, child = slot_and_child
    child.sendall(pack_report(0, READY))
    assert [report[1] for report in slot.reports()] == [READY]
    assert slot.idle
    for number in (1, 2, 3):
        slot.give(number, delivery())
    assert slot.recall()
    assert len(slot.take_back(running=1)) == 2
    assert list(slot.pending) == [1]
    child.sendall(pack_report(1, ASKED) + pack_report(1, DONE))
    assert len(slot.reports()) == 2
    del slot.pending[1]
    assert not slot.idle, "it has yet to find the others recalled"
    child.sendall(pack_report(2, SKIPPED))
    slot.reports()
    assert not slot.idle
    child.sendall(pack_report(3, SKIPPED))
    slot.reports()
    assert slot.idle
