"""Whatever a broker can carry and whatever a child can report: it comes to one end, and its neighbours are settled beside it.

On the loop of ``taskq.testing``, which is the worker's own custody, settling and execution in one thread: thousands a second.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from taskq import chain, chord, group
from taskq.broker.interface import Delivery
from taskq.errors import ConfigurationError, MessageTooLarge
from taskq.testing import in_memory, worker
from taskq.testing.loop import Loop
from taskq.workers.outcome import Outcome
from tests import hostile
from tests.apps.hostile import add, app, fail, once, refuse

MANY = hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
RANDOM = st.randoms(use_true_random=False)
#: Within so many seconds everything ends that does not say itself that it is to run later.
SOME_TIME = 600.0


class Bench:
    """The app's file; ``put`` stores a message as whoever wrote it, without a word to taskq."""

    def __init__(self) -> None:
        self.file = sqlite3.connect(app.settings.broker.removeprefix("sqlite:///"), isolation_level=None)

    def put(self, properties: bytes, body: bytes, *, redelivered: bool = False) -> None:
        sql = "insert into messages (queue, priority, properties, body, redelivered) values ('default', 0, ?, ?, ?)"
        self.file.execute(sql, (properties, body, redelivered))

    def left(self) -> int:
        """How many messages are neither dead nor done, nor delayed."""
        sql = "select count(*) from messages where queue = 'default' and due is null"
        return int(self.file.execute(sql).fetchone()[0])

    def dead(self) -> int:
        return int(self.file.execute("select count(*) from messages where queue like '%.dead'").fetchone()[0])


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with in_memory(app):
        app.send_task("add")  # which makes the file and the queue
        bench = Bench()
        yield bench
        bench.file.close()


def settles_beside_neighbours(bench: Bench, properties: bytes, body: bytes) -> list[str]:
    """Run the message between two good ones; returns how everything ended."""
    before = add.delay(1)
    bench.put(properties, body)
    after = add.delay(2)
    with worker(app, background=False) as at_work:
        runs = at_work.advance(5.0)
        assert (before.get(timeout=0), after.get(timeout=0)) == ([1], [2])
        runs += at_work.advance(SOME_TIME)
    assert bench.left() == 0
    return [run.event for run in runs]


@MANY
@given(st.binary(), st.binary())
def test_any_bytes(bench: Bench, properties: bytes, body: bytes) -> None:
    dead = bench.dead()
    assert settles_beside_neighbours(bench, properties, body).count("dead-lettered") == 1
    assert bench.dead() == dead + 1


@MANY
@given(RANDOM)
def test_any_envelope(bench: Bench, rng: Random) -> None:
    events = settles_beside_neighbours(bench, *hostile.envelope(rng))
    assert len(events) >= 3


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("task", ["add", "once"])
def test_what_is_no_id_is_the_end_of_its_message_alone(bench: Bench, task: str, redelivered: bool) -> None:
    before, dead = add.delay(1), bench.dead()
    no_ids: list[Any] = ["", None, 5, [1], {"a": {}}]
    for task_id in no_ids:
        bench.put(hostile.properties({"task": task, "id": task_id}), b"[[1], {}, {}]", redelivered=redelivered)
    with worker(app, background=False) as at_work:
        at_work.advance(SOME_TIME)
        assert before.get(timeout=0) == [1]
    assert (bench.left(), bench.dead()) == (0, dead + len(no_ids))


def test_a_text_that_utf8_cannot_carry_is_found_before_the_task_runs(bench: Bench) -> None:
    past = {"worker": "\ud800", "started": 1.0, "seconds": 1.0, "ended": "\udce9"}
    bench.put(hostile.properties({"task": "add", "id": "in-odd-group", "group": "caf\udce9"}), b"[[1], {}, {}]")
    bench.put(
        hostile.properties({"task": "add", "id": "with-odd-past", "tq-history": [past, {**past, "worker": "w"}]}),
        b"[[1], {}, {}]",
    )
    with worker(app, background=False) as at_work:
        runs = {run.id: run.event for run in at_work.advance(SOME_TIME)}
        assert (runs["in-odd-group"], runs["with-odd-past"]) == ("dead-lettered", "succeeded")
        assert app.result("with-odd-past").get(timeout=0) == [1]


@MANY
@given(RANDOM)
def test_any_envelopes_that_came_back_together(bench: Bench, rng: Random) -> None:
    add.delay(1)
    for _ in range(5):
        # The id is what they are asked about together.
        headers = {**hostile.headers(rng), "id": hostile.odd(rng)}
        bench.put(hostile.properties(headers), hostile.body(rng), redelivered=True)
        bench.put(*hostile.envelope(rng), redelivered=True)
    after = add.delay(2)
    with worker(app, background=False) as at_work:
        at_work.advance(SOME_TIME)
        assert after.get(timeout=0) == [2]
    assert bench.left() == 0


@MANY
@given(RANDOM)
def test_any_outcome_that_a_child_can_report(bench: Bench, rng: Random) -> None:
    outcome = hostile.outcome(rng)
    try:
        msgspec.msgpack.encode(outcome)
    except (ValueError, OverflowError):
        return  # no child can report it
    for number in (1, 2, 3):
        add.delay(number)

    class Reporting(Loop):
        def execute(self, delivery: Delivery) -> Outcome | None:
            real = super().execute(delivery)
            return outcome if b"[2]" in delivery.body else real

    loop = Reporting(app, app.queue_names(), lambda _: None)
    try:
        quiet = 0
        while quiet < 3:
            for settlement in loop.settler.settlements:
                settlement.due = 0.0
            quiet = 0 if loop.turn() else quiet + 1
        assert loop.settler.settlements == []
    finally:
        loop.close()
    assert bench.left() == 0


@MANY
@given(RANDOM)
def test_any_signatures(bench: Bench, rng: Random) -> None:
    def options() -> dict[str, Any]:
        return hostile.some(rng, hostile.OPTIONS[:9], 2)

    def leaf() -> Any:
        return rng.choice([add, fail, once, refuse]).s(1).set(**options())

    sent = add.delay(1)
    with suppress(ConfigurationError, TypeError, MessageTooLarge):
        match rng.randrange(5):
            case 0:
                chain(leaf(), leaf(), leaf()).apply_async(**options())
            case 1:
                group(leaf(), leaf()).apply_async(**options())
            case 2:
                chord([leaf(), leaf()], leaf()).apply_async(**options())
            case 3:
                first = leaf()
                first.link(leaf())
                first.delay()
            case _:
                fail.s().on_error(leaf()).delay()
    with worker(app, background=False) as at_work:
        at_work.advance(5.0)
        assert sent.get(timeout=0) == [1]
        # What is due in a hundred years comes to its end as well.
        at_work.run()
    assert bench.left() == 0
