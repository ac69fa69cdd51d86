"""Failures that cannot be described: they are their tasks' failures, not crashes, and cost nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from taskq import AsyncResult, Signature, TaskQ
from taskq.errors import DeadLettered, TaskFailed
from taskq.workers.outcome import MOST_ARGUMENTS, described
from tests.apps.faulty import Model
from tests.support import Stage, Worker

FAULTY = "tests.apps.faulty:app"


@pytest.fixture
def worker(stage: Stage) -> Iterator[Worker]:
    with stage.worker(FAULTY, "-c", "1") as running:
        yield running.started()


@pytest.fixture
def client(stage: Stage) -> TaskQ:
    return stage.client()


def end_of(result: AsyncResult[Any]) -> Exception:
    try:
        value = result.get(timeout=30)
    except Exception as error:  # noqa: BLE001  # which one is what the test asks
        return error
    raise AssertionError(f"it has returned {value!r}")


def test_a_failure_that_cannot_be_described_is_a_failure(stage: Stage, worker: Worker, client: TaskQ) -> None:
    sent = {kind: client.send_task("raises", [kind]) for kind in ("bad", "argument", "surrogate", "reject", "nested", "long")}
    assert client.send_task("add", [1, 2]).get(timeout=30) == 3
    ends = {kind: end_of(result) for kind, result in sent.items()}
    assert [trace["kind"] for trace in stage.traces("raises")] == list(sent), "each has run once"
    assert (type(ends["bad"]).__name__, type(ends["argument"])) == ("Bad", ValueError)
    assert "bad file caf\\udce9" in str(ends["surrogate"])
    assert isinstance(ends["reject"], DeadLettered)
    assert "bad file caf" in str(ends["reject"])
    assert sent["nested"].meta()["result"]["exc_type"] == "ExceptionGroup"
    assert len(str(ends["long"])) < 10_000
    assert worker.logged("child_died") == []
    assert worker.log.stat().st_size < 1_000_000


def test_a_text_as_the_reason_of_a_retry_is_its_failure(worker: Worker, client: TaskQ) -> None:
    result = client.send_task("raises", ["busy"])
    with pytest.raises(Exception, match="busy"):
        result.get(timeout=30)
    assert worker.logged("child_died") == []


def test_a_long_failure_reaches_its_errback(stage: Stage, worker: Worker, client: TaskQ) -> None:
    failing: Signature[Any] = Signature("raises", ("long",), {}, send=client._send)
    note: Signature[Any] = Signature("note", (), {}, send=client._send)
    failing.on_error(note).delay()
    stage.traced("note")
    assert client.send_task("add", [1, 2]).get(timeout=30) == 3
    assert worker.logged("broker_lost") == []


def test_a_long_text_in_another_script_can_be_retried_25_times(worker: Worker, client: TaskQ) -> None:
    result = client.send_task("chinese")
    with pytest.raises(ValueError, match="错误"):
        result.get(timeout=30)
    assert len(result.attempts) == 20
    assert worker.logged("broker_lost") == []


def test_what_an_exception_says_comes_back(worker: Worker, client: TaskQ) -> None:
    with pytest.raises(Model.DoesNotExist, match="no order 5"):
        client.send_task("raises", ["missing"]).get(timeout=30)
    with pytest.raises(FileNotFoundError, match="No such file: '/etc/nothing'"):
        client.send_task("raises", ["file"]).get(timeout=30)
    with pytest.raises(TaskFailed, match="HTTP Error 404: gone"):
        client.send_task("raises", ["http"]).get(timeout=30)
    assert worker.process.poll() is None


def test_arguments_that_are_left_out_are_counted() -> None:
    assert described(ValueError(*range(MOST_ARGUMENTS)))["exc_message"] == list(range(MOST_ARGUMENTS))
    assert described(ValueError(*range(100_000)))["exc_message"] == [*range(MOST_ARGUMENTS), "… and 99992 more"]
