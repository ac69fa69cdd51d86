"""SQLite and ``settle`` against a model, with a crash at every boundary between publish, store and ack.

The model is the list of the messages under way in the order of their rows, and how each task ended. After every step the file
must say exactly the same: so each message is in one place, a follow-up is there once if its parent is acked and else not at
all, and a task that has ended has one record and no message.
"""

from __future__ import annotations

import itertools
import select
import shutil
import sqlite3
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskq import config, liveness
from taskq.broker.interface import Delivery
from taskq.broker.sqlite.channel import FIRST
from taskq.broker.sqlite.properties import correlation_id, decode
from taskq.broker.sqlite.session import SqliteSession
from taskq.errors import DatabaseError, UnsupportedFeature
from taskq.message import Message, Publication
from taskq.workers.last_resort import LastResort
from taskq.workers.outcome import Outcome, dead_letter, record
from taskq.workers.settle import Settler
from tests.chaos.fragile import FragileConsumer, FragileResults, Fuse, KilledError, full_disk, interrupted

HOUR = 3600.0
#: So many boundaries has a settlement of two outcomes, and more.
BOUNDARIES = 14

which = st.integers(0, 100)


@dataclass
class Row:
    """A message under way. ``owner`` is the number of the worker that holds it."""

    name: str
    first: bool = False
    delayed: bool = False
    redelivered: bool = False
    owner: int | None = None


@dataclass
class Worker:
    """A supervisor reduced to what it does to the database. ``decided`` is what its settler has yet to carry out."""

    number: int
    window: int
    consumer: FragileConsumer
    results: FragileResults
    settler: Settler
    fuse: Fuse
    held: dict[str, Delivery] = field(default_factory=dict)
    decided: list[tuple[str, Outcome]] = field(default_factory=list)

    @property
    def undecided(self) -> list[str]:
        done = {name for name, _ in self.decided}
        return [name for name in self.held if name not in done]

    @property
    def database(self) -> Any:
        return self.consumer.database


def message(name: str) -> Message:
    return Message(headers={"id": name}, body=b"[]", correlation_id=name)


def publication(name: str, delay: float = 0.0, *, first: bool = False) -> Publication:
    return Publication("mail", message(name), delay, first)


def outcome_of(kind: str, name: str, children: list[str]) -> Outcome:
    match kind:
        case "succeeded":
            return Outcome("succeeded", tuple(map(publication, children)), record(message(name), "SUCCESS", 1))
        case "retried":
            return Outcome("delayed", (publication(name, HOUR),))
        case "given back":
            return Outcome("given back", (publication(name, first=True),))
        case _:
            end = record(message(name), "FAILURE", None)
            return dead_letter("mail", message(name), "rejected", "", worker="w", end=end)


class Chaos(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="taskq-machine-"))
        self.url = f"sqlite:///{self.folder}/taskq.db"
        self.settings = config.load({"broker": self.url}, environment={})
        self.last_resort = LastResort(self.settings, "worker", decode, lambda _: "default")
        self.session = SqliteSession(self.settings, 5.0)
        self.observer = sqlite3.connect(f"{self.folder}/taskq.db", isolation_level=None)
        self.names = map(str, itertools.count())
        self.numbers = itertools.count()
        self.workers: dict[int, Worker] = {}
        self.owners: dict[int, int] = {}
        # The model.
        self.rows: list[Row] = []
        self.letters: list[str] = []
        self.ends: dict[str, str] = {}
        #: Ready for the model, but not for the file before somebody has noticed a death or the time.
        self.unnoticed: set[str] = set()

    def teardown(self) -> None:
        try:
            self.everything_ends()
        finally:
            for worker in self.workers.values():
                worker.consumer.close()
            self.session.close()
            self.observer.close()
            shutil.rmtree(self.folder)

    def everything_ends(self) -> None:
        for worker in list(self.workers.values()):
            self.vanish(worker)
        self.an_hour_passes()
        last = self.start(window=10_000)
        self.receive(last, None)
        assert len(last.held) == len(self.rows)
        for name in last.undecided:
            self.decide(last, "succeeded", name, 0)
        self.settle(last, nullcontext())
        self.the_file_says_the_same()
        assert self.rows == []

    # What the workers and the producers do

    def chosen(self, number: int) -> Worker:
        return list(self.workers.values())[number % len(self.workers)]

    @initialize()
    def begin(self) -> None:
        self.start(window=3)
        self.publish_several(2, first=False)

    @precondition(lambda self: len(self.workers) < 3)
    @rule(window=st.integers(1, 4))
    def start_worker(self, window: int) -> None:
        self.start(window)

    def start(self, window: int) -> Worker:
        fuse = Fuse()
        consumer = FragileConsumer(self.settings, ["mail"], fuse)
        consumer.connect(5.0)
        consumer.set_window(window)
        assert consumer.database is not None
        results = FragileResults(self.url, consumer.database, fuse)
        worker = Worker(next(self.numbers), window, consumer, results, Settler(results, self.last_resort), fuse)
        self.workers[worker.number] = worker
        self.owners[consumer._transport.owner] = worker.number
        return worker

    @rule(count=st.integers(1, 3), first=st.booleans())
    def publish_several(self, count: int, first: bool) -> None:
        names = list(itertools.islice(self.names, count))
        self.session.publish([publication(name, first=first) for name in names], time.monotonic() + 5.0)
        self.rows += [Row(name, first) for name in names]

    @rule(first=st.booleans())
    def publish_delayed(self, first: bool) -> None:
        name = next(self.names)
        self.session.publish([publication(name, HOUR, first=first)], time.monotonic() + 5.0)
        self.rows.append(Row(name, delayed=True))

    @rule(steps=st.integers(0, 400))
    def publish_interrupted(self, steps: int) -> None:
        names = list(itertools.islice(self.names, 2))
        try:
            with interrupted(self.session.database, steps):
                self.session.publish([publication(name) for name in names], time.monotonic() + 5.0)
        except DatabaseError:
            return
        self.rows += [Row(name) for name in names]

    @rule()
    def publish_what_cannot_be_encoded(self) -> None:
        broken = Publication("mail", message("broken").with_headers(x=object()))
        with pytest.raises(UnsupportedFeature):
            self.session.publish([publication("sound"), broken], time.monotonic() + 5.0)

    @rule()
    def an_hour_passes(self) -> None:
        """For the file, which is moved instead of the clock."""
        self.observer.execute("update messages set due = due - ? where due is not null", (HOUR + 1,))
        liveness.ring_everyone(liveness.folder_of(self.session.database), liveness.DUE)
        for row in self.rows:
            if row.delayed:
                row.delayed = False
                self.unnoticed.add(row.name)

    @precondition(lambda self: self.workers)
    @rule(number=which, steps=st.none() | st.integers(0, 600))
    def receive_some(self, number: int, steps: int | None) -> None:
        self.receive(self.chosen(number), steps)

    def receive(self, worker: Worker, steps: int | None) -> None:
        ready = [row for row in self.rows if row.owner is None and not row.delayed]
        ready.sort(key=lambda row: not row.first)
        room = worker.window - len(worker.held)
        hungry = room > 0 and any(row.name not in self.unnoticed for row in ready)
        arrived: list[Delivery] = []
        try:
            with interrupted(worker.database, steps):
                worker.consumer.tick()
                if hungry:
                    assert select.select([worker.consumer.fileno()], [], [], 0.0)[0], "it is not told of what is ready"
                arrived = worker.consumer.receive()
        except DatabaseError:
            assert steps is not None
        else:
            assert arrived or not hungry
        assert len(arrived) <= room
        for delivery in arrived:
            name = correlation_id(delivery.properties)
            assert name is not None
            while ready and ready[0].name != name:
                assert ready.pop(0).name in self.unnoticed, "it was overtaken"
            assert ready, f"{name} was not ready"
            row = ready.pop(0)
            assert delivery.redelivered == row.redelivered
            row.owner = worker.number
            worker.held[name] = delivery

    @precondition(lambda self: any(worker.undecided for worker in self.workers.values()))
    @rule(number=which, kind=st.sampled_from(["succeeded", "retried", "given back", "dead"]), children=st.integers(0, 2))
    def decide_one(self, number: int, kind: str, children: int) -> None:
        able = [worker for worker in self.workers.values() if worker.undecided]
        worker = able[number % len(able)]
        self.decide(worker, kind, worker.undecided[0], children)

    def decide(self, worker: Worker, kind: str, name: str, children: int) -> None:
        outcome = outcome_of(kind, name, list(itertools.islice(self.names, children)))
        worker.settler.add(worker.held[name], outcome)
        worker.decided.append((name, outcome))

    # Settling, and what comes in between

    @precondition(lambda self: any(worker.decided for worker in self.workers.values()))
    @rule(number=which, boundary=st.none() | st.integers(0, BOUNDARIES), killing=st.booleans())
    def settle_until_a_boundary(self, number: int, boundary: int | None, killing: bool) -> None:
        worker = self.deciding(number)
        worker.fuse.set(boundary, killing=killing)
        try:
            self.settle(worker, nullcontext())
        except KilledError:
            self.take_effect(worker)
            self.vanish(worker)
        worker.fuse.set(None)

    @precondition(lambda self: any(worker.decided for worker in self.workers.values()))
    @rule(number=which, steps=st.integers(0, 1500))
    def settle_interrupted(self, number: int, steps: int) -> None:
        worker = self.deciding(number)
        self.settle(worker, interrupted(worker.database, steps))

    @precondition(lambda self: any(worker.decided for worker in self.workers.values()))
    @rule(number=which, pages=st.integers(0, 1))
    def settle_on_a_full_disk(self, number: int, pages: int) -> None:
        worker = self.deciding(number)
        self.settle(worker, full_disk(worker.database, pages))

    def deciding(self, number: int) -> Worker:
        able = [worker for worker in self.workers.values() if worker.decided]
        return able[number % len(able)]

    def settle(self, worker: Worker, trouble: AbstractContextManager[None]) -> None:
        """What fails with an error has changed nothing, and is carried out by a later pass."""
        try:
            with trouble:
                worker.settler.settle(worker.consumer)
        except DatabaseError:
            self.take_effect(worker)
            assert len(worker.settler.settlements) == len(worker.decided)
            return
        self.take_effect(worker)
        # One that failed by itself, while others took effect, waits for a moment.
        assert [settlement.due > 0 for settlement in worker.settler.settlements] == [True] * len(worker.decided)

    def take_effect(self, worker: Worker) -> None:
        """What was acked has; in the order in which it was, which changes where a pass had failed."""
        outcomes, names = dict(worker.decided), {id(delivery): name for name, delivery in worker.held.items()}
        done = [names[id(delivery)] for delivery in worker.consumer.settled]
        worker.consumer.settled.clear()
        for name in done:
            outcome = outcomes[name]
            for sent in outcome.publish:
                about = str(sent.message.correlation_id)
                if sent.queue == "mail":
                    self.rows.append(Row(about, sent.first, sent.delay > 0))
                else:
                    self.letters.append(about)
            if outcome.record is not None:
                assert name not in self.ends
                self.ends[name] = outcome.record.status
            del worker.held[name]
        self.rows = [row for row in self.rows if not (row.name in done and row.owner == worker.number)]
        worker.decided = [(name, outcome) for name, outcome in worker.decided if name not in done]

    @precondition(lambda self: self.workers)
    @rule(number=which, orderly=st.booleans())
    def end_worker(self, number: int, orderly: bool) -> None:
        worker = self.chosen(number)
        if orderly:
            worker.consumer.close()
            self.forget(worker)
        else:
            self.vanish(worker)

    def vanish(self, worker: Worker) -> None:
        worker.consumer.vanish()
        self.forget(worker)

    def forget(self, worker: Worker) -> None:
        """Nobody has gone on with what it held, and whoever gets it is told so."""
        del self.workers[worker.number]
        for row in self.rows:
            if row.owner == worker.number:
                row.owner, row.redelivered = None, True
                self.unnoticed.add(row.name)

    # What must be true

    @invariant()
    def the_file_says_the_same(self) -> None:
        now, rows, letters = time.time(), [], []
        query = "select queue, priority, due, owner, redelivered, properties from messages order by id"
        for queue, priority, due, owner, redelivered, properties in self.observer.execute(query):
            name = str(correlation_id(properties))
            if queue == "mail.dead":
                letters.append(name)
                continue
            number = self.owners.get(owner)
            lost = owner is not None and number not in self.workers
            delayed = due is not None and due > now
            rows.append(Row(name, priority == FIRST, delayed, bool(redelivered) or lost, None if lost else number))
            if not lost and (due is None or delayed):
                self.unnoticed.discard(name)
        assert rows == self.rows
        assert letters == self.letters
        assert dict(self.observer.execute("select id, status from results")) == self.ends
        under_way = [row.name for row in self.rows]
        assert len(set(under_way)) == len(under_way)
        assert not self.ends.keys() & set(under_way)


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
