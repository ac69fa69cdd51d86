"""A task that runs at most once was lost while several copies of its message were about: it ends once, and it does end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from typing import Any

import pytest

from taskq import config
from taskq.broker.interface import Delivery
from taskq.message import Message
from taskq.results.store import ResultStore
from taskq.task import router
from taskq.workers.crashes import SEEN_RUNNING_SECONDS, Coroner
from taskq.workers.last_resort import LastResort
from taskq.workers.outcome import Outcome, record
from taskq.workers.returns import BELIEVED_SECONDS, Returns, came_back
from taskq.workers.settle import Settler
from tests.conformance.results.support import Backend, fetched, fresh

SETTINGS = config.load({"broker": "sqlite:////nowhere/once.db"}, environment={})
SEEN = "tq-seen-running"
NOBODY = 2**22 + 1  # no process has this number: the kernel's greatest is 2**22


class Judge:
    """What of one worker judges what comes back."""

    def __init__(self, store: ResultStore) -> None:
        self.store = store
        self.died: set[str] = set()
        self._messages: dict[bytes, Message] = {}
        route = router({}, "celery")
        last_resort = LastResort(SETTINGS, "judge", lambda properties, _: self._messages[properties], route)
        coroner = Coroner(SETTINGS, "judge", route)
        self._returns = Returns(Settler(store, last_resort), coroner, lambda _: None, self.died.intersection)

    def returned(self, *messages: Message) -> list[Outcome]:
        """How these end that came back at once."""
        for number, message in enumerate(messages):
            properties = f"{number}: {' '.join(message.headers)}".encode()
            self._messages[properties] = message
            delivery = Delivery("celery", number, properties, message.body, redelivered=SEEN not in message.headers)
            assert came_back(delivery)
            self._returns.waiting.append(delivery)
        return [judgement.outcome for judgement in self._returns.judge() if judgement.outcome is not None]


def call() -> Message:
    task_id = fresh()
    headers = {"lang": "py", "task": "once", "id": task_id, "root_id": task_id, "retries": 0}
    return Message(headers=headers, body=b"[[], {}, {}]", correlation_id=task_id)


def begun(store: ResultStore, *, pid: int, hostname: str = socket.gethostname(), started: float | None = None) -> Message:
    """The message of a task that has begun in that process."""
    message = call()
    about: dict[str, Any] = {"pid": pid, "hostname": hostname, "worker": "w", "retries": 0}
    about["started"] = time.time() if started is None else started
    beginning = record(message, "STARTED", about, run="w")
    assert beginning is not None
    assert store.begin([beginning]) == ["granted"]
    return message


def events(outcomes: list[Outcome]) -> list[str]:
    return [outcome.event for outcome in outcomes]


def seen_again(outcome: Outcome) -> Message:
    [publication] = outcome.publish
    assert (outcome.event, publication.delay) == ("delayed", SEEN_RUNNING_SECONDS)
    assert SEEN in publication.message.headers
    return publication.message


def test_of_copies_that_come_back_at_once_one_is_the_loss(backend: Backend) -> None:
    one, two = Judge(backend.open()), Judge(backend.open())
    message = begun(one.store, pid=NOBODY)
    dead, *others = [*one.returned(message, message, message), *two.returned(message)]
    assert events([dead, *others]) == ["dead-lettered", *["delayed"] * 3]
    copies = [seen_again(other) for other in others]
    assert events(two.returned(*copies)) == ["delayed"] * 3, "it is not recorded yet"
    assert dead.record is not None
    one.store.store([dead.record])
    assert events(two.returned(*copies)) == ["given back"] * 3
    # Whoever gets one of these asks leave to begin it, and is told so.
    beginning = record(message, "STARTED", {}, run="another")
    assert beginning is not None
    assert two.store.begin([beginning]) == ["over"]


def test_who_takes_a_loss_on_may_die_of_it(backend: Backend) -> None:
    one, two = Judge(backend.open()), Judge(backend.open())
    message = begun(one.store, pid=NOBODY)
    assert events(one.returned(message)) == ["dead-lettered"]
    taken_on = fetched(one.store, message.headers["id"])
    assert taken_on is not None
    meta = json.loads(taken_on.meta)
    assert meta["result"]["pid"] == os.getpid()
    meta["result"]["pid"] = NOBODY
    assert one.store.replace([(taken_on, json.dumps(meta).encode())]) == [True]
    assert events(two.returned(message)) == ["dead-lettered"]


def test_a_process_that_is_still_dying_is_looked_at_again(backend: Backend) -> None:
    judge = Judge(backend.open())
    with subprocess.Popen(["sleep", "60"]) as process:
        message = begun(judge.store, pid=process.pid)
        for _ in range(3):
            [waits] = judge.returned(message)
            message = seen_again(waits)
        process.kill()
    [lost] = judge.returned(message)
    assert lost.event == "dead-lettered"
    assert lost.publish[0].message.headers["tq-dead-reason"] == "lost"
    assert SEEN not in lost.publish[0].message.headers


def test_a_worker_that_is_known_to_be_dead_leaves_no_doubt(backend: Backend) -> None:
    judge = Judge(backend.open())
    with subprocess.Popen(["sleep", "60"]) as process:
        message = begun(judge.store, pid=process.pid)
        judge.died.add(message.headers["id"])
        assert events(judge.returned(message)) == ["dead-lettered"]
        process.kill()


def test_a_process_that_began_in_the_future_is_none(backend: Backend) -> None:
    judge = Judge(backend.open())
    assert events(judge.returned(begun(judge.store, pid=os.getpid(), started=1e300))) == ["dead-lettered"]


def test_another_machine_is_believed_for_a_while(backend: Backend) -> None:
    judge = Judge(backend.open())
    for ago, event in ((0.0, "delayed"), (BELIEVED_SECONDS / 2, "delayed"), (BELIEVED_SECONDS + 1, "dead-lettered")):
        message = begun(judge.store, pid=1, hostname="elsewhere").with_headers(**{SEEN: time.time() - ago})
        outcomes = judge.returned(message)
        assert events(outcomes) == [event]
        if event == "delayed":
            # Handed on as it is: machines that believed each other would do so for ever.
            assert seen_again(outcomes[0]).headers[SEEN] == message.headers[SEEN]
    assert events(judge.returned(begun(judge.store, pid=1, hostname="elsewhere"))) == ["dead-lettered"]


@pytest.mark.parametrize("seen", [None, "", True, [], {}, float("nan"), float("inf"), -1e300, 10**30])
def test_a_mark_that_anybody_sends_costs_one_look(backend: Backend, seen: object) -> None:
    judge = Judge(backend.open())
    message = call().with_headers(**{SEEN: seen})
    [outcome] = judge.returned(message)
    [publication] = outcome.publish
    assert outcome.event == "given back"
    assert SEEN not in publication.message.headers
    begins = begun(judge.store, pid=1, hostname="elsewhere").with_headers(**{SEEN: seen})
    assert events(judge.returned(begins)) == ["dead-lettered"]
