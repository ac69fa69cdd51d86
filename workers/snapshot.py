"""A snapshot: how a worker stands at one moment, as a frozen value that any thread may read at leisure.

Messages are in it as the bytes that they are; whoever wants to know what they say decodes them elsewhere.
"""

from __future__ import annotations

import time

import msgspec

from taskq.broker.interface import Delivery
from taskq.workers.rate import counts, finished
from taskq.workers.slot import Slot
from taskq.workers.supervisor import Supervisor
from taskq.workers.tap import Held, held


class Child(msgspec.Struct, frozen=True):
    """A slot and its child. ``task`` is what it runs, ``since`` the monotonic moment at which that began."""

    slot: int
    pid: int | None
    state: str
    finished: int
    task: Held | None = None
    since: float = 0.0


class Snapshot(msgspec.Struct, frozen=True):
    """``reserved`` are the messages that the worker holds and has not begun, ``tasks`` the names of those that it knows.

    ``revoked`` are the ids of tasks that must not run. ``finished`` is how many tasks have ended,
    ``counts`` how many of each name, ``rate`` how many a second of late.
    """

    state: str
    children: tuple[Child, ...]
    reserved: tuple[Held, ...]
    paused: frozenset[str]
    revoked: tuple[str, ...]
    tasks: tuple[str, ...]
    window: int
    finished: int
    counts: dict[str, int]
    rate: float
    taken_at: float


def take(supervisor: Supervisor) -> Snapshot:
    """How it stands now; called in the loop."""
    custody, now = supervisor.custody, time.monotonic()
    waiting: list[Delivery] = [*custody.backlog, *custody.suspects.waiting]
    for slot in supervisor.slots:
        running = slot.running()
        waiting += [delivery for number, delivery in slot.pending.items() if number != running]
    return Snapshot(
        state=_state(supervisor),
        children=tuple(map(_child, supervisor.slots)),
        reserved=tuple(map(held, waiting)),
        paused=custody.orders.paused,
        revoked=custody.orders.revoked,
        tasks=supervisor.children.launcher.tasks,
        window=supervisor.window,
        finished=finished(supervisor.vitals),
        counts=counts(supervisor.vitals),
        rate=supervisor.rate.rate(now, supervisor.vitals),
        taken_at=now,
    )


def _state(supervisor: Supervisor) -> str:
    if supervisor.stopping:
        return "draining"
    return "broker away" if supervisor.consumer is None else "consuming"


def _child(slot: Slot) -> Child:
    number, since = slot.running(), slot.note.started
    running = slot.pending.get(number)
    if slot.stopped_at is not None:
        state = "stopped"
    elif not slot.ready:
        state = "starting"
    else:
        state = "idle" if running is None else "running"
    if running is None:
        return Child(slot.index, slot.process_id, state, slot.finished)
    return Child(slot.index, slot.process_id, state, slot.finished, held(running), since)
