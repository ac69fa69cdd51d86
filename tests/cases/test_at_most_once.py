"""A task that runs at most once: its message comes twice, its worker is believed dead, and still it runs once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskq import TaskQ, config
from taskq.broker.interface import Delivery
from taskq.dead import revived
from taskq.errors import Retry
from taskq.message import Message
from taskq.results.store import ResultStore
from taskq.task import router
from taskq.workers.crashes import Coroner
from taskq.workers.execute import Executor
from taskq.workers.outcome import Outcome, again
from taskq.workers.surroundings import Alone
from tests.conformance.results.support import Backend, fetched, fresh
from tests.conformance.results.test_beginnings import standing

SETTINGS = config.load({"broker": "sqlite:////nowhere/once.db"}, environment={})


class Asking(Alone):
    """A supervisor that asks the store."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store

    def may_begin(self, begun: Any) -> bool:
        return self._store.begin([begun]) == ["granted"]


class Worker:
    """One of several that share a backend; ``ran`` counts what its task did."""

    def __init__(self, backend: Backend, name: str, task: Callable[[], Any] = lambda: "done") -> None:
        self.store = backend.open()
        self.ran = 0
        self.task = task
        app = TaskQ("once", broker=SETTINGS.broker)
        app.task(name="once", acks_late=False, max_retries=5)(self.run)
        self.messages: dict[bytes, Message] = {}
        self.execute = Executor(app.tasks, SETTINGS, lambda properties, _: self.messages[properties], name)
        self.execute.surroundings = Asking(self.store)
        self.coroner = Coroner(SETTINGS, name, router(app.tasks, "celery"))

    def run(self) -> Any:
        self.ran += 1
        return self.task()

    def begin(self, message: Message) -> Outcome | None:
        """Run what it says; None if it must not."""
        self.messages[b"it"] = message
        return self.execute(Delivery("celery", 1, b"it", message.body, redelivered=False))

    def settle(self, outcome: Outcome | None) -> None:
        """Store what there is to record."""
        if outcome is not None and outcome.record is not None:
            self.store.store([outcome.record])

    def believe_lost(self, message: Message) -> Outcome:
        """The message came back, and stands in the records as begun."""
        outcome = self.coroner.came_back(
            "celery", message, orphaned=True, begun=False, record=fetched(self.store, message.headers["id"])
        )
        assert outcome.event == "dead-lettered"
        return outcome


def call(**headers: Any) -> Message:
    task_id = fresh()
    known = {"lang": "py", "task": "once", "id": task_id, "root_id": task_id, "retries": 0}
    return Message(headers={**known, **headers}, body=b"[[], {}, {}]", correlation_id=task_id)


def test_a_message_that_was_published_twice_runs_once(backend: Backend) -> None:
    one, two, message = Worker(backend, "one"), Worker(backend, "two"), call()
    first = one.begin(message)
    assert two.begin(message) is None
    one.settle(first)
    assert two.begin(message) is None
    assert one.begin(message) is None
    assert (one.ran, two.ran) == (1, 0)
    assert standing(two.store, message.headers["id"])[0] == "SUCCESS"


def test_of_many_that_begin_it_at_once_one_runs_it(backend: Backend) -> None:
    workers = [Worker(backend, str(number)) for number in range(6)]
    messages = [call() for _ in range(10)]
    with ThreadPoolExecutor(len(workers)) as threads:
        list(threads.map(lambda worker: [worker.settle(worker.begin(message)) for message in messages], workers))
    assert sum(worker.ran for worker in workers) == len(messages)
    assert {standing(workers[0].store, message.headers["id"])[0] for message in messages} == {"SUCCESS"}


def test_a_copy_that_comes_back_later_does_not_run_beside_it(backend: Backend) -> None:
    one, two, message = Worker(backend, "one"), Worker(backend, "two"), call()
    one.begin(message)
    given_back = again("given back", "celery", message).publish[0].message
    assert given_back.attempt > message.attempt
    assert two.begin(given_back) is None
    assert two.begin(given_back.with_headers(**{"tq-returns": 2, "tq-crashes": 1})) is None


def test_a_retry_is_another_run_and_late_copies_are_none(backend: Backend) -> None:
    def busy() -> None:
        raise Retry(countdown=1.0)

    one, two, message = Worker(backend, "one", busy), Worker(backend, "two"), call()
    outcome = one.begin(message)
    assert outcome is not None
    [retry] = outcome.publish
    assert two.begin(message) is None
    two.settle(two.begin(retry.message.without("eta")))
    assert two.begin(message) is None
    assert (one.ran, two.ran) == (1, 1)
    assert standing(one.store, message.headers["id"])[0] == "SUCCESS"


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_run_whose_connection_broke_has_the_last_word(backend: Backend, late: bool, fails: bool) -> None:
    def end() -> str:
        if fails:
            raise KeyError("its own")
        return "done"

    one, two, message = Worker(backend, "one", end), Worker(backend, "two"), call()
    outcome = one.begin(message)
    lost = two.believe_lost(message)
    for worker, what in [(two, lost), (one, outcome)][:: 1 if late else -1]:
        worker.settle(what)
    found = fetched(two.store, message.headers["id"])
    assert found is not None
    result = json.loads(found.meta)["result"]
    assert (result["exc_type"], result["exc_message"]) == ("KeyError", ["its own"]) if fails else result == "done"


def test_a_dead_letter_that_is_replayed_begins_anew(backend: Backend) -> None:
    one, two, message = Worker(backend, "one"), Worker(backend, "two"), call()
    one.begin(message)
    lost = two.believe_lost(message)
    two.settle(lost)
    assert two.begin(message) is None
    replay = revived(lost.publish[0].message, time.time())
    two.settle(two.begin(replay))
    assert two.ran == 1
    assert standing(one.store, message.headers["id"])[0] == "SUCCESS"
    assert two.begin(replay) is None
