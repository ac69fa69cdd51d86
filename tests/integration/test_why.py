"""``taskq why`` and ``taskq queues`` beside real workers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from taskq import TaskQ
from taskq.cli.main import cli
from taskq.workflow import chain
from tests.servers import RabbitMQ
from tests.support import Stage, eventually, processes_of

Ask = Callable[..., dict[str, Any]]
TROUBLE = "tests.apps.trouble:app"


def taskq(stage: Stage, *arguments: str) -> Any:
    """What a command prints with --json, run in this process for speed."""
    variables = {f"TASKQ_{name.upper()}": str(value) for name, value in stage.keywords.items()}
    ended = CliRunner().invoke(cli, [*arguments, "--json"], env=variables)
    assert ended.exit_code in (0, 1), ended.output
    return json.loads(ended.stdout)


@pytest.fixture
def why(stage: Stage) -> Ask:
    return lambda task_id, *options: taskq(stage, "why", task_id, "--timeout", "0.3", *options)


def state(why: Ask, task_id: str) -> str:
    return str(why(task_id)["state"])


def becomes(why: Ask, task_id: str, *states: str) -> dict[str, Any]:
    eventually(lambda: state(why, task_id) in states, f"{task_id} is {states}")
    return why(task_id)


def can_look(stage: Stage) -> bool:
    return stage.broker.startswith("sqlite:")


def test_from_the_call_to_the_end(stage: Stage, why: Ask) -> None:
    client = stage.client()
    waiting = client.send_task("wait", ["gate"])
    client.send_task("good", ["behind"], task_id="behind")
    client.send_task("good", ["later"], task_id="later", countdown=60)
    before = why(waiting.id)
    assert before["state"] == ("unconsumed" if can_look(stage) else "pending")
    assert stage.queue in before["text"]
    client.pause(stage.queue)
    assert why("behind")["state"] == ("paused" if can_look(stage) else "pending")
    assert "is paused" in why("behind")["text"]
    client.resume(stage.queue)
    assert why("later")["state"] == ("delayed" if can_look(stage) else "pending")
    assert why("never")["state"] == ("unknown" if can_look(stage) else "pending")
    with stage.worker(TROUBLE, "-c", "1") as worker:
        stage.traced("wait")
        running = becomes(why, waiting.id, "running")
        assert running["details"]["queue"] == stage.queue
        assert running["details"]["pid"] in processes_of(worker.pid)
        more = client.send_task("good", ["more"])
        nowhere = becomes(why, more.id, "waiting", "pending", "held")
        assert why("later")["state"] == ("delayed" if can_look(stage) else "pending")
        if not can_look(stage):
            assert "no worker that answers has it" in why("later")["text"]
            assert f"Queue {stage.queue!r} has" in nowhere["text"]
        stage.open_gate("gate")
        assert becomes(why, waiting.id, "finished")["text"].startswith("it has succeeded at ")
        assert becomes(why, "behind", "finished")["details"]["status"] == "SUCCESS"


def test_ends_that_are_bad(stage: Stage, why: Ask) -> None:
    client = stage.client()
    with stage.worker(TROUBLE):
        failed, refused = client.send_task("flaky", [9, "ValueError"]), client.send_task("refuse", [False])
        retried = client.send_task("backing_off")
        assert "ValueError: no. 0" in becomes(why, failed.id, "finished")["text"]
        dead = becomes(why, refused.id, "dead")
        assert dead["text"].startswith(f"it is among the dead letters of queue {stage.queue!r}, reason 'rejected'")
        assert dead["hint"].startswith(f"taskq dead show {stage.queue} --id {refused.id}")
        if can_look(stage):
            assert "its retry 1 comes in" in becomes(why, retried.id, "delayed")["text"]
        client.send_task("good", ["revoked"], task_id="revoked", countdown=60)
        client.revoke("revoked")
        assert why("revoked")["text"].startswith("it was revoked ")


def test_a_task_that_says_that_it_began(stage: Stage, why: Ask) -> None:
    client = stage.client()
    with stage.worker(TROUBLE) as worker:
        once = client.send_task("once", ["gate"])
        stage.traced("once")
        running = becomes(why, once.id, "running")
        assert running["text"].startswith("it has been running for ")
        assert running["details"]["running"] is True
        worker.send(signal.SIGSTOP)
        # It says nothing now, and the record stands.
        assert why(once.id)["details"]["retries"] == 0
        worker.send(signal.SIGCONT)
        stage.open_gate("gate")
        becomes(why, once.id, "finished")


def test_a_step_of_a_workflow_that_has_not_begun(stage: Stage, why: Ask) -> None:
    client = stage.client()
    flow = TaskQ("flow", **stage.keywords)

    @flow.task(name="wait")
    def wait(gate: str) -> str:
        return gate

    @flow.task(name="good")
    def good(key: str) -> str:
        return key

    last = chain(wait.s("gate"), good.s()).delay()
    assert why(last.id)["state"] == "blocked"
    assert why(last.id)["details"]["waits_for"] == [last.parent.id]
    with stage.worker(TROUBLE):
        stage.traced("wait")
        assert becomes(why, last.parent.id, "running")["state"] == "running"
        stage.open_gate("gate")
        becomes(why, last.id, "finished")
    flow.close()
    client.close()


def test_what_can_be_had_is_said_where_one_of_the_two_is_away(stage: Stage, why: Ask) -> None:
    client = stage.client()
    with stage.worker(TROUBLE):
        done = client.send_task("good", ["done"])
        assert done.get(timeout=15) == "done"
    stage.settings |= {"broker": "amqp://ann:hush@127.0.0.1:1//"}
    stage.settings |= {"backend": client.settings.backend, "publish_timeout": 1}
    answer = why(done.id)
    assert answer["state"] == "finished"
    assert answer["unasked"][0].startswith("the broker could not be asked: cannot reach amqp://ann:***@127.0.0.1:1//")
    stage.settings |= {"backend": "postgresql://ann:hush@127.0.0.1:1/shop"}
    variables = {f"TASKQ_{name.upper()}": str(value) for name, value in stage.keywords.items()}
    ended = CliRunner().invoke(cli, ["why", done.id], env=variables)
    assert ended.exit_code == 1
    assert ended.stderr.startswith("Error: cannot reach amqp://ann:***@")
    assert "hush" not in ended.output


def test_a_task_without_a_trace_exits_1(sqlite_stage: Stage) -> None:
    variables = {f"TASKQ_{name.upper()}": str(value) for name, value in sqlite_stage.keywords.items()}
    ended = CliRunner().invoke(cli, ["why", "never"], env=variables)
    assert (ended.exit_code, ended.stdout.partition(":")[0]) == (1, "unknown")


def test_queues_beside_a_worker(stage: Stage) -> None:
    def row() -> dict[str, Any]:
        (found,) = taskq(stage, "queues", stage.queue)
        return dict(found)

    client = stage.client()
    assert row()["ready"] is None
    client.send_task("good", ["later"], countdown=60)
    client.send_task("wait", ["gate"])
    eventually(lambda: row()["ready"] == 1, "it is ready")
    assert row()["dead"] == 0
    assert row()["consumers"] == (0 if can_look(stage) else None)
    with stage.worker(TROUBLE, "-c", "2"):
        stage.traced("wait")
        eventually(lambda: (row()["consumers"] or 0) >= 1, "a worker fetches")
        known = {name: row()[name] for name in ("ready", "held", "delayed")}
        assert known == (
            {"ready": 0, "held": 1, "delayed": 1} if can_look(stage) else {"ready": 0, "held": None, "delayed": None}
        )
        stage.open_gate("gate")


def test_rabbitmq_says_that_it_cannot_look(rabbitmq: RabbitMQ, amqp_stage: Stage) -> None:
    client = amqp_stage.client()
    client.send_task("good", ["waiting"], task_id="waiting")
    eventually(lambda: amqp_stage.depth() == 1, "it is ready")
    answer = taskq(amqp_stage, "why", "waiting", "--queue", amqp_stage.queue)
    assert answer["state"] == "pending"
    assert f"Queue {amqp_stage.queue!r} has 1 ready, and no workers that answer" in answer["text"]
    assert answer["hint"] is None
