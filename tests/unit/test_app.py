"""The app: settings, batches, sizes, and what it opens when."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from taskq.broker import decoder
from taskq.errors import (
    BrokerError,
    ConfigurationError,
    DatabaseError,
    MessageTooLarge,
    NotBound,
    ResultsDisabled,
    ResultTimeout,
)
from taskq.signature import Signature
from tests.support import consuming


@pytest.fixture
def app(tmp_path: Path) -> TaskQ:
    return TaskQ("unit", broker=f"sqlite:///{tmp_path}/unit.db")


def adding(count: int) -> list[Signature[int]]:
    return [Signature[int]("add", [number, 1]) for number in range(count)]


def sent(app: TaskQ, count: int, queue: str = "default") -> list[str]:
    """The ids of the messages in the queue, in order."""
    assert app.publisher.depth(queue) == count
    with consuming(app.settings, queue) as hold:
        read = decoder(app.settings)
        return [str(read(d.properties, d.body).headers["id"]) for d in hold.receive(count)]


def test_making_an_app_touches_nothing(tmp_path: Path) -> None:
    made = TaskQ("unit", broker=f"sqlite:///{tmp_path}/deep/unit.db")
    assert repr(made) == "<TaskQ unit>"
    assert list(tmp_path.iterdir()) == []
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_keywords_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_DEFAULT_QUEUE", "mail")
    made = TaskQ("unit", broker="sqlite:////nowhere/unit.db", default_queue="other", max_crashes=7)
    assert (made.settings.default_queue, made.settings.max_crashes) == ("mail", 7)
    assert made.settings.sources["default_queue"] == "environment"
    made.configure({"default_queue": "chosen"})
    assert made.settings.default_queue == "chosen"
    with pytest.raises(ConfigurationError, match="did you mean 'max_crashes'"):
        TaskQ("unit", max_crash=7)
    with pytest.raises(ConfigurationError, match="not a URL"):
        TaskQ("unit", broker="redis://localhost")


def test_queue_names(app: TaskQ) -> None:
    assert app.queue_names() == ("default",)
    for number, queue in enumerate(["mail", None, "default", "mail", "slow"]):
        app.task(name=f"{number}", queue=queue)(print)
    assert app.queue_names() == ("default", "mail", "slow")
    app.configure({"queues": "a, default,b"})
    assert app.queue_names() == ("default", "a", "b", "mail", "slow")


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_send_many_sends_all_in_order(app: TaskQ, count: int) -> None:
    results = app.send_many(iter(adding(count)))
    ids = [result.id for result in results]
    assert len(set(ids)) == count
    if count:
        assert sent(app, count) == ids
    app.close()


def test_send_many_says_what_was_confirmed_before_it_failed(app: TaskQ, tmp_path: Path) -> None:
    def calls() -> Any:
        yield from adding(1000)
        # The file is locked when the second batch is sent.
        stranger.execute("begin immediate")
        yield from adding(10)

    app.send_task("add", [0, 0])
    app.configure({"publish_timeout": 0.2})
    stranger = sqlite3.connect(tmp_path / "unit.db", isolation_level=None)
    with pytest.raises(DatabaseError, match="locked") as failed:
        app.send_many(calls())
    stranger.close()
    assert isinstance(failed.value, BrokerError)
    assert sent(app, 1001)[1:] == list(failed.value.confirmed)


def test_nothing_of_a_batch_is_sent_if_one_is_refused(app: TaskQ) -> None:
    with pytest.raises(TypeError, match="set"):
        app.send_many([*adding(5), Signature[int]("add", [{1}])])
    with pytest.raises(MessageTooLarge):
        app.send_many([*adding(5), Signature[int]("add", ["x" * 2_000_000])])
    assert app.publisher.depth("default") is None


def test_a_message_that_is_too_large_is_refused_at_the_call(app: TaskQ) -> None:
    with pytest.raises(MessageTooLarge, match=r"task 'add': its message is \d+ bytes, over max_message_bytes=1048576; store"):
        app.send_task("add", ["x" * 1_048_576])
    app.send_task("add", ["x" * 1_048_000])
    app.configure({"max_message_bytes": 100})
    with pytest.raises(ValueError, match="max_message_bytes=100"):
        app.send_task("add", ["x" * 100])


def test_a_name_that_the_app_knows_is_sent_as_that_task(app: TaskQ) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    app.task(name="add", queue="sums")(add)
    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        app.send_task("add", [1])
    result = app.send_task("add", [1, 2])
    assert sent(app, 1, "sums") == [result.id]
    app.send_task("unknown", [1], queue="elsewhere")
    assert app.publisher.depth("elsewhere") == 1


def test_results_that_are_off(tmp_path: Path) -> None:
    made = TaskQ("unit", broker=f"sqlite:///{tmp_path}/unit.db", backend="off")
    result = made.send_task("add", [1, 2])
    for ask in (lambda: result.status, result.ready, result.get):
        with pytest.raises(ResultsDisabled, match="TASKQ_BACKEND"):
            ask()


def test_a_result_that_is_not_there_yet(app: TaskQ) -> None:
    result = app.send_task("add", [1, 2])
    assert (result.status, result.ready(), result.wait(0.01), result.traceback) == ("PENDING", False, False, None)
    assert result == app.result(result.id)
    assert hash(result) == hash(app.result(result.id))
    with pytest.raises(ResultTimeout, match=result.id):
        result.get(timeout=0.01)


def test_a_closed_app_opens_again(app: TaskQ) -> None:
    for _ in range(3):
        app.send_task("add", [1, 2])
        app.close()
        app.close()
    assert app.publisher.depth("default") == 3


def test_a_signature_of_no_task_is_sent_by_name(app: TaskQ) -> None:
    signature = Signature[int]("add", [1, 2])
    with pytest.raises(NotBound):
        signature.delay()
    (result,) = app.send_many([signature])
    assert sent(app, 1) == [result.id]
