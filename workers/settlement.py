"""Settlements: outcomes on their way to take effect, and what children ask meanwhile. ``settle`` moves them on."""

from __future__ import annotations

import time
from typing import NamedTuple

from taskq.broker.interface import Delivery, Receipt
from taskq.launch import Member
from taskq.message import Publication
from taskq.results.store import Leave
from taskq.workers.outcome import Outcome
from taskq.workers.slot import Slot


class Settlement:
    """An outcome on its way to take effect.

    ``since`` is when it came about, and ``published_at`` when that went out which ``receipt`` is for, in monotonic seconds.

    With ``asked``, the outcome is a beginning that this slot's child asks leave for, under this number: the message stays
    unacked, and ``leave`` is what the backend says.

    ``stages`` are the outcomes still to take effect: the delivery's own, then those of the chords that it has completed as one
    of their ``members``. These are closed together at the end: were one closed before what follows it has taken effect, nobody
    would make up for it. ``chord_failures`` say why their bodies could not be sent.

    Where something that it publishes was refused, ``unsent`` is what goes out singly from then on, and ``some_sent`` says that
    other things have gone out.

    It is not looked at before ``due``. ``failures`` counts what failed of it alone, ``dead_letters`` what was tried in place of
    the outcome, ``breaks`` the connections that the broker closed while what it publishes was under way.
    """

    __slots__ = (
        "acked",
        "asked",
        "breaks",
        "chord_failures",
        "dead_letters",
        "delivery",
        "due",
        "failures",
        "leave",
        "members",
        "outcome",
        "published_at",
        "receipt",
        "since",
        "some_sent",
        "stages",
        "unsent",
    )

    def __init__(self, delivery: Delivery, outcome: Outcome, asked: tuple[Slot, int] | None = None, breaks: int = 0) -> None:
        self.delivery = delivery
        self.outcome = outcome
        self.asked = asked
        self.breaks = breaks
        self.since = self.published_at = time.monotonic()
        self.failures = self.dead_letters = 0
        self.chord_failures: tuple[str, ...] = ()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing of it has taken effect."""
        self.stages = [self.outcome]
        self.members: tuple[Member, ...] = ()
        self.some_sent = self.acked = False
        self.leave: Leave = "granted"
        self.due = 0.0
        self.await_nothing()

    def await_nothing(self) -> None:
        """What it publishes has yet to go out."""
        self.receipt: Receipt | None = None
        self.unsent: tuple[Publication, ...] | None = None


class Question(NamedTuple):
    """Whether this copy of a schedule's tick may run, which the slot's child asks under this number."""

    delivery: Delivery
    tick: str
    copy: str
    asked: tuple[Slot, int]


class Answer(NamedTuple):
    """What the slot's child is told that asked under this number; ``settled``: its delivery has come to another end."""

    slot: Slot
    number: int
    granted: bool
    settled: bool = False
