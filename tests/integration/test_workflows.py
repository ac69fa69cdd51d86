"""Workflows on real workers: chains, groups and chords, whatever becomes of their tasks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from taskq import TaskQ, chain, chord, group
from taskq.cli.main import cli
from taskq.errors import ChordError, DeadLettered, ResultError, TaskRevoked, UnsupportedFeature
from taskq.results.group import GroupResult
from taskq.signature import Signature
from tests.support import Stage, Worker, eventually


@pytest.fixture
def client(stage: Stage) -> TaskQ:
    return stage.client()


@pytest.fixture
def worker(stage: Stage) -> Iterator[Worker]:
    with stage.worker("tests.apps.flows:app", TASKQ_UNKNOWN_TASK_TTL="0.5") as worker:
        yield worker


@pytest.fixture
def call(client: TaskQ) -> Any:
    """A call by the task's name, bound to the client."""

    def make(name: str, /, *args: Any, **kwargs: Any) -> Signature[Any]:
        return Signature(name, args, kwargs, send=client._send)

    return make


def immutable(signature: Signature[Any]) -> Signature[Any]:
    signature.immutable = True
    return signature


def test_each_step_of_a_chain_gets_what_the_one_before_it_returned(worker: Worker, call: Any) -> None:
    assert chain(call("add", 1, 2), call("add", 3), call("add", 4)).delay().get(15) == 10
    assert (call("add", 1, 2) | call("add", 3) | immutable(call("add", 50, 1)) | call("add", 4)).delay().get(15) == 55
    assert chain(call("add", 1), call("add", 1)).delay(10).get(15) == 12
    result = chain(call("add", 1, 2), call("add", 3)).delay()
    assert result.get(15) == 6
    assert result.parent.get(0) == 3


def test_a_group_runs_at_once_and_its_results_are_in_order(worker: Worker, client: TaskQ, call: Any) -> None:
    result = group(call("add", number, 1) for number in range(20)).delay()
    assert result.get(15) == list(range(1, 21))
    assert (result.ready(), result.successful(), result.failed(), result.completed_count()) == (True, True, False, 20)
    client.save_group(result)
    restored: GroupResult[int] = client.group_result(result.id)
    assert restored == result
    assert restored.get(0) == list(range(1, 21))
    failing = group([call("add", 1, 1), call("fail")]).delay()
    with pytest.raises(ValueError, match="no"):
        failing.get(15)
    first, second = failing.get(15, propagate=False)
    assert (first, repr(second)) == (2, "ValueError('no')")
    assert (failing.successful(), failing.failed()) == (False, True)
    with pytest.raises(ResultError, match="no group nowhere was saved"):
        client.group_result("nowhere")


def test_the_body_of_a_chord_gets_the_results_of_all_members(worker: Worker, stage: Stage, call: Any) -> None:
    assert chord([call("one", number) for number in range(10)], call("total")).delay().get(15) == 45
    assert (group(call("one", number) for number in range(3)) | call("total") | call("add", 1)).delay().get(15) == 4
    assert chord([call("one", 1), group(call("one", 2), call("one", 3))])(call("total")).get(15) == 6
    assert chord([call("add", 1, 1) | call("add", 1), call("ignore")], call("note")).delay().get(15) == [[3, None]]
    assert chord([], call("total")).delay().get(15) == 0
    assert group(()).delay().get(0) == []
    assert len(stage.traces("total")) == 4


def test_chords_nest(worker: Worker, call: Any) -> None:
    inner = chord([call("one", 1), call("one", 2)], call("total"))
    outer = chord([inner, call("add", 3, 4), inner.clone() | call("add", 100)], call("total"))
    assert outer.delay().get(20) == 3 + 7 + 103
    # A chord as a step of a chain, whose members get what comes before it; and a group as the body of another.
    assert (call("add", 1, 1) | group(call("add", 1), call("add", 2)) | call("total") | call("add", 1)).delay().get(20) == 8
    twice = (group(call("one", 1), call("one", 2)) | group(call("note", name="a"), call("note", name="b"))).delay()
    assert twice.get(20) == [[[1, 2]], [[1, 2]]]
    thrice = (group(call("one", 1), call("one", 2)) | group(call("note"), call("note")) | call("note")).delay()
    assert thrice.get(20) == [[[[1, 2]], [[1, 2]]]]


def test_callbacks_and_errbacks(worker: Worker, stage: Stage, call: Any) -> None:
    linked = call("add", 1, 2)
    linked.link(call("note", name="callback"))
    linked.link_error(call("told", name="never"))
    assert linked.delay().get(15) == 3
    assert stage.traced("note")[0]["values"] == [3]
    failing = call("fail").on_error(call("told", name="old")).on_error(call("told_more"))
    result = failing.apply_async(link=call("note", name="never"))
    with pytest.raises(ValueError, match="no"):
        result.get(15)
    [old] = stage.traced("told", name="old")
    [new] = stage.traced("told_more")
    assert old["task_id"] == new["task_id"] == result.id
    assert (new["task"], new["exc"]) == ("fail", "ValueError('no')")
    assert 'raise ValueError("no", *values)' in new["traceback"]
    assert not stage.traces("note", name="never")
    assert not stage.traces("told", name="never")


def test_a_chain_that_fails_fails_to_its_end(worker: Worker, stage: Stage, call: Any) -> None:
    body = call("note", name="never")
    flow = chain(call("add", 1, 2), call("fail"), group(call("one"), call("one")), body, call("note", name="never"))
    result = flow.on_error(call("told", name="chain")).delay()
    with pytest.raises(ValueError, match="no"):
        result.get(15)
    before = result.parent
    while before is not None and before.parent is not None:
        assert before.failed()
        before = before.parent
    assert before.get(0) == 3
    assert len(stage.traced("told", name="chain")) == 1
    eventually(lambda: stage.depth() == 0, "nothing is left to do")
    assert not stage.traces("note")
    assert not stage.traces("one")


@pytest.mark.parametrize("how", ["fail", "die", "unheard", "revoked", "expired"])
def test_a_chord_whose_member_ends_badly_fails_once(stage: Stage, client: TaskQ, worker: Worker, call: Any, how: str) -> None:
    bad = call("one", 3) if how in ("revoked", "expired") else call(how)
    if how == "revoked":
        task_id = str(uuid.uuid4())
        bad.set(task_id=task_id, countdown=1.0)
        client.revoke(task_id)
    if how == "expired":
        bad.set(expires=-1.0)
    body = call("total").on_error(call("told", name="chord"))
    result = (chord([call("one", 1), bad, call("one", 2)], body) | call("note")).delay()
    with pytest.raises(ChordError, match=r"Dependency .* raised"):
        result.get(30)
    with pytest.raises(ChordError):
        result.parent.get(0)
    [told] = stage.traced("told", name="chord")
    assert told["task_id"] == result.parent.id
    eventually(lambda: stage.depth() == 0, "nothing is left to do")
    assert not stage.traces("total")
    assert not stage.traces("note")


def test_a_body_that_fails_calls_its_errback(worker: Worker, stage: Stage, call: Any) -> None:
    result = chord([call("one", 1)], call("fail").on_error(call("told", name="body"))).delay()
    with pytest.raises(ValueError, match="no"):
        result.get(15)
    assert [told["task_id"] for told in stage.traced("told", name="body")] == [result.id]


def test_what_a_dead_worker_did_is_not_counted_twice(worker: Worker, stage: Stage, call: Any) -> None:
    result = chord([call("kill_once", number) for number in range(8)], call("total")).delay()
    assert result.get(30) == 28
    assert len(stage.traces("total")) == 1


def test_a_task_can_send_a_workflow(worker: Worker, client: TaskQ, call: Any) -> None:
    assert client.result(call("spawn", 4).delay().get(15)).get(15) == 6


def test_one_task_can_work_through_many_items(worker: Worker, stage: Stage) -> None:
    from tests.apps.flows import add, app, one

    app.configure(stage.keywords)
    try:
        assert one.map(range(5)).delay().get(15) == list(range(5))
        assert add.starmap([(1, 2), (3, 4)]).delay().get(15) == [3, 7]
        chunks = add.chunks(((n, n) for n in range(10)), 4)
        assert chunks.delay().get(15) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
        assert (chunks | app.tasks["note"].s()).delay().get(15) == [[[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]]
    finally:
        app.close()
        app.configure({})


def test_a_workflow_can_be_looked_at(stage: Stage, client: TaskQ, worker: Worker, call: Any) -> None:
    flow = chord([call("one", 1), call("after_gate", 2, "open")], call("total")) | call("note")
    result = flow.delay()

    def shown(task_id: str, *options: str) -> str:
        asked = CliRunner().invoke(cli, ["workflow", "show", task_id, *options], env=stage.environment())
        assert asked.exit_code == 0, asked.output
        return asked.output

    def statuses() -> list[str]:
        chord_, last = json.loads(shown(result.id, "--json"))["steps"]
        return [step["status"] for step in (*chord_["steps"], last)]

    eventually(lambda: statuses() == ["SUCCESS", "STARTED", "PENDING", "PENDING"], "one has run, one runs, the others wait")
    drawn = shown(result.id)
    assert "1. chord, 1 of 3 tasks done" in drawn
    assert all(text in drawn for text in ("✓ one", "▶ after_gate", "· body: total", "· 2. note"))
    stage.open_gate("open")
    assert result.get(15) == [3]
    assert statuses() == ["SUCCESS"] * 4
    assert shown(result.parent.parent[1].id) == shown(result.id), "any task of it will do"
    unknown = CliRunner().invoke(cli, ["workflow", "show", "nobody"], env=stage.environment())
    assert (unknown.exit_code, "no workflow of nobody is known" in unknown.output) == (1, True)


def test_chords_need_somebody_who_counts(stage: Stage, call: Any) -> None:
    client = stage.client(backend="off")
    one = Signature[Any]("one", (1,), send=client._send)
    for flow in (chord([one], one), group(one, one) | one):
        with pytest.raises(UnsupportedFeature, match="a chord needs a backend that counts"):
            flow.delay()
    assert chain(one, one).delay().id
    assert stage.depth() == 1


def test_a_member_is_not_run_where_nobody_counts(stage: Stage, client: TaskQ, call: Any) -> None:
    chord([call("one", 1)], call("total")).delay()
    with stage.worker("tests.apps.flows:app", TASKQ_BACKEND="off"):
        [letter] = stage.dead_letters(1)
    assert "member of a chord" in letter.headers["tq-dead-detail"]
    assert not stage.traces("one")


def test_what_was_never_sent_is_unknown(sqlite_stage: Stage) -> None:
    client = sqlite_stage.client()
    never, sent, later = client.result("never"), client.send_task("one", [1]), client.send_task("one", [1], countdown=3600)
    assert [result.status for result in (never, sent, later)] == ["UNKNOWN", "PENDING", "PENDING"]
    with sqlite_stage.worker("tests.apps.flows:app"):
        assert sent.get(15) == 1
    assert [result.status for result in (never, sent, later)] == ["UNKNOWN", "SUCCESS", "PENDING"]
    sent.forget()
    assert [result.status for result in (never, sent, later)] == ["UNKNOWN", "UNKNOWN", "PENDING"]
    assert sent.attempts == ()


def test_every_attempt_is_remembered(stage: Stage, client: TaskQ, worker: Worker) -> None:
    result = client.send_task("kill_once", [1])
    assert result.get(15) == 1
    killed, done = result.attempts
    assert ("SIGKILL" in killed.ended, done.ended) == (True, "SUCCESS")
    assert killed.started <= done.started
    assert killed.worker == done.worker
    with pytest.raises(DeadLettered, match="crashed"):
        client.send_task("die").get(15)
    with pytest.raises(TaskRevoked):
        later = client.send_task("one", [1], countdown=1)
        later.revoke()
        later.get(15)
