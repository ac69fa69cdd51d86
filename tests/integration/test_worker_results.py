"""What a task's caller sees: results, failures, contexts and log lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import pytest

from taskq import TaskQ
from taskq.errors import TaskFailed
from taskq.signature import Signature
from tests.support import Stage, Worker, eventually


@pytest.fixture
def worker(stage: Stage) -> Iterator[Worker]:
    with stage.worker() as worker:
        yield worker


@pytest.fixture
def client(stage: Stage) -> TaskQ:
    return stage.client()


def test_results(client: TaskQ, stage: Stage, worker: Worker) -> None:
    result = client.send_task("add", [1, 2])
    assert result.get(timeout=15) == 3
    assert result.status == "SUCCESS"
    assert result.traceback is None

    values = [
        datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
        date(2024, 1, 1),
        time(1, 2),
        Decimal("1.10"),
        UUID(int=5),
        b"\xff",
        b"a",
    ]
    names = ["datetime", "date", "time", "Decimal", "UUID", "bytes", "bytes"]
    assert client.send_task("echo", values).get(timeout=15) == [*values, *names]
    assert client.send_task("echo", kwargs={"ключ": "значение"}).get(timeout=15) == ["значение", "str"]

    nothing: list[Signature[int]] = []
    assert client.send_many(nothing) == []


def test_failures(client: TaskQ, stage: Stage, worker: Worker) -> None:
    failed = client.send_task("fail", ["no such order"])
    with pytest.raises(ValueError, match="no such order") as caught:
        failed.get(timeout=15)
    assert caught.value.args == ("no such order", 7)
    assert failed.status == "FAILURE"
    assert failed.traceback is not None
    assert "ValueError: ('no such order', 7)" in failed.traceback
    assert "raise ValueError(text, 7)" in failed.traceback
    assert "execute.py" not in failed.traceback
    assert len(worker.logged("task_failed", task="fail", task_id=failed.id)) == 1

    left = client.send_task("leave")
    left.wait(15)
    assert left.status == "FAILURE"
    assert left.meta()["result"]["exc_type"] == "SystemExit"

    unfaithful = client.send_task("unfaithful")
    with pytest.raises((TypeError, TaskFailed), match="set"):
        unfaithful.get(timeout=15)

    wrong_call = client.send_task("add", [1])
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        wrong_call.get(timeout=15)

    assert client.send_task("add", [1, 1]).get(timeout=15) == 2
    assert worker.logged("child_died") == []


def test_an_ignored_result_is_not_kept(client: TaskQ, stage: Stage, worker: Worker) -> None:
    ignored = client.send_task("silent", ["by the task"], ignore_result=True)
    kept = client.send_task("mark", ["kept"])
    assert kept.get(timeout=15) == "kept"
    stage.traced("silent")
    eventually(lambda: worker.logged("task_succeeded", task_id=ignored.id), "the end of the task is logged")
    assert client.send_task("mark", ["later"]).get(timeout=15) == "later"
    assert not ignored.ready()


def test_a_task_that_sends_a_task_is_its_parent(client: TaskQ, stage: Stage, worker: Worker) -> None:
    first = client.send_task("follow", [2])
    traces = stage.traced("follow", 3)
    ids = {trace["depth"]: trace["id"] for trace in traces}
    assert ids[2] == first.id
    assert {trace["root_id"] for trace in traces} == {first.id}
    assert {trace["depth"]: trace["parent_id"] for trace in traces} == {2: None, 1: ids[2], 0: ids[1]}


@pytest.mark.parametrize("through", ["logging", "structlog"])
def test_log_lines_of_a_task_say_which(client: TaskQ, stage: Stage, worker: Worker, through: str) -> None:
    talk = client.send_task("talk", ["order shipped", through])
    talk.get(timeout=15)
    (line,) = eventually(lambda: worker.logged("order shipped"), "the task's own line")
    assert line["task_id"] == talk.id
    assert line["task"] == "talk"
    assert line["attempt"] == 1


def test_expired_and_delayed(client: TaskQ, stage: Stage, worker: Worker) -> None:
    worker.started()
    expired = client.send_task("mark", ["expired"], expires=-1.0)
    assert expired.wait(15)
    assert expired.status == "REVOKED"
    sent = stage.client().send_task("mark", ["later"], countdown=1.0)
    now = client.send_task("mark", ["now"])
    assert now.get(timeout=15) == "now"
    assert sent.get(timeout=15) == "later"
    (first, last) = stage.traces("mark")
    assert (first["key"], last["key"]) == ("now", "later")
    assert last["at"] - first["at"] > 0.5
