"""Tasks that raise: tried again as their policy says, under the same id, and dead-lettered when that is over."""

from __future__ import annotations

import pytest

from taskq.errors import TaskFailed
from tests.support import Stage, Worker, eventually

TROUBLE = "tests.apps.trouble:app"


def settled(stage: Stage, worker: Worker) -> None:
    """Nothing is left, and the worker ends in peace."""
    eventually(lambda: stage.depth() == 0, "the queue is empty")
    assert worker.stop() == 0
    assert stage.depth() == 0


def test_an_error_is_retried_under_the_same_id_with_its_history(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        result = stage.client().send_task("flaky", [2])
        assert result.get(timeout=15) == 2
        traces = stage.traces("flaky")
        assert {trace["id"] for trace in traces} == {result.id}
        assert [trace["retries"] for trace in traces] == [0, 1, 2]
        assert [trace["history"] for trace in traces] == [[], ["OSError('no. 0')"], ["OSError('no. 0')", "OSError('no. 1')"]]
        attempts = result.meta()["attempts"]
        assert [attempt["ended"] for attempt in attempts] == ["OSError('no. 0')", "OSError('no. 1')", "SUCCESS"]
        assert all(attempt["worker"] and attempt["started"] > 0 and attempt["seconds"] >= 0 for attempt in attempts)
        settled(stage, worker)


def test_what_keeps_failing_ends_as_itself_and_as_a_dead_letter(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        result = stage.client().send_task("flaky", [100])
        with pytest.raises(OSError, match=r"no\. 3"):
            result.get(timeout=15)
        (letter,) = stage.dead_letters(1)
        assert letter.headers["tq-dead-reason"] == "retries exhausted"
        assert letter.headers["retries"] == 3
        assert "OSError: no. 3" in letter.headers["tq-dead-traceback"]
        assert [past["ended"] for past in letter.headers["tq-history"]] == [f"OSError('no. {number}')" for number in range(4)]
        assert letter.headers["tq-dead-first"] <= letter.headers["tq-dead-at"]
        settled(stage, worker)


@pytest.mark.parametrize("kind", ["FileNotFoundError", "ValueError"])
def test_other_errors_fail_at_once(stage: Stage, kind: str) -> None:
    with stage.worker(TROUBLE):
        with pytest.raises({"FileNotFoundError": FileNotFoundError, "ValueError": ValueError}[kind]):
            stage.client().send_task("flaky", [1, kind]).get(timeout=15)
        assert len(stage.traces("flaky")) == 1


def test_a_task_asks_for_its_retry(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        client = stage.client()
        assert client.send_task("again", [2]).get(timeout=15) == 2
        with pytest.raises(ValueError, match="attempt 2"):
            client.send_task("again", [9, 0.0, 1]).get(timeout=15)
        slow = client.send_task("again", [1, 1.0])
        assert slow.get(timeout=15) == 1
        first, second = stage.traces("again", id=slow.id)
        assert 0.9 <= second["at"] - first["at"] < 3.5
        settled(stage, worker)


def test_a_function_decides(stage: Stage) -> None:
    with stage.worker(TROUBLE):
        client = stage.client()
        assert client.send_task("choosy", ["busy now"]).get(timeout=15) == "busy now"
        with pytest.raises(RuntimeError, match="broken"):
            client.send_task("choosy", ["broken"]).get(timeout=15)


def test_the_delays_grow(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(TROUBLE):
        with pytest.raises(ValueError, match="again"):
            sqlite_stage.client().send_task("backing_off").get(timeout=15)
        first, second, third = [trace["at"] for trace in sqlite_stage.traces("backing_off")]
        assert 0.9 <= second - first < 1.9
        assert 1.9 <= third - second < 2.9


def test_what_a_task_rejects_is_dead_lettered_or_comes_again(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        client = stage.client()
        rejected = client.send_task("refuse", [False])
        with pytest.raises(TaskFailed, match="rejected: not for me"):
            rejected.get(timeout=15)
        (letter,) = stage.dead_letters(1)
        assert (letter.headers["tq-dead-reason"], letter.headers["id"]) == ("rejected", rejected.id)
        requeued = client.send_task("refuse", [True, 2])
        assert requeued.get(timeout=15) == "accepted"
        assert len(stage.traces("refuse", id=requeued.id)) == 3
        settled(stage, worker)


def test_what_a_task_ignores_is_over(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        ignored = stage.client().send_task("shrug")
        assert ignored.get(timeout=15) is None
        assert ignored.status == "IGNORED"
        assert len(stage.traces("shrug")) == 1
        settled(stage, worker)


def test_a_worker_that_is_killed_between_the_error_and_the_retry_loses_nothing(stage: Stage) -> None:
    """Retries of long delays are in the broker: whatever is killed, they come."""
    client = stage.client()
    with stage.worker(TROUBLE, "-c", "1") as first:
        results = [client.send_task("again", [1, 1.5]) for _ in range(20)]
        stage.traced("again", 20)
        first.send(9, group=True)
        first.wait()
    with stage.worker(TROUBLE):
        assert [result.get(timeout=15) for result in results] == [1] * 20
