"""Celery's own tools look at taskq's workers: ``celery inspect``, ``celery status``, ``celery control``, events and Flower."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
from celery import Celery
from celery.events import EventReceiver

from tests.conftest import staged
from tests.servers import RabbitMQ, free_port
from tests.support import ROOT, Stage, eventually

TROUBLE = "tests.apps.trouble:app"


@pytest.fixture
def stage(rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(rabbitmq.url, queue, tmp_path))


@pytest.fixture
def celery(stage: Stage) -> Iterator[Celery]:
    app = Celery("monitor", broker=stage.broker, set_as_current=False)
    yield app
    app.close()


def celery_command(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``celery -A …`` as a shell does."""
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.celery_side", *arguments]
    return subprocess.run(command, cwd=ROOT, env=stage.environment(), capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def captured(celery: Celery) -> Iterator[list[dict[str, Any]]]:
    """The events that Celery's receiver hears meanwhile."""
    heard: list[dict[str, Any]] = []
    listening, enough = threading.Event(), threading.Event()

    def listen() -> None:
        with celery.connection() as connection:
            receiver = EventReceiver(connection, handlers={"*": heard.append}, app=celery)
            with receiver.consumer_context(wakeup=True) as (own, _, _):
                listening.set()
                while not enough.is_set():
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.1)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(10.0)
    try:
        yield heard
    finally:
        enough.set()
        thread.join(10.0)


def test_what_celerys_command_line_asks(stage: Stage) -> None:
    with stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        node, client = stage.name_of(worker), stage.client()
        running = client.send_task("hold", ["secret", "gate"])
        stage.traced("hold")

        def ask(question: str) -> Any:
            ended = celery_command(stage, "inspect", question, "--json", "-t", "3", "-d", node)
            assert ended.returncode == 0, ended.stderr
            return json.loads(ended.stdout)[node]

        questions = ("ping", "stats", "active", "reserved", "registered", "active_queues", "conf", "scheduled", "report")
        with ThreadPoolExecutor(3) as shells:
            status = shells.submit(celery_command, stage, "status", "-t", "3")
            answers = dict(zip(questions, shells.map(ask, questions), strict=True))
        assert status.result().returncode == 0
        assert f"{node}: OK" in status.result().stdout
        assert answers["ping"] == {"ok": "pong"}
        assert answers["stats"]["pid"] == worker.pid
        assert answers["stats"]["pool"]["max-concurrency"] == 1
        assert answers["stats"]["broker"]["userid"] == "guest"
        [active] = answers["active"]
        assert (active["id"], active["name"], active["worker_pid"]) == (running.id, "hold", stage.traces("hold")[0]["pid"])
        assert answers["reserved"] == answers["scheduled"] == []
        assert {"add", "hold", "mark"} <= set(answers["registered"])
        assert [queue["name"] for queue in answers["active_queues"]] == [stage.queue]
        assert answers["conf"]["concurrency"] == 1
        assert f"worker: {node}, application basic" in answers["report"]["ok"]
        assert "secret" not in json.dumps(answers)
        assert "guest:guest" not in json.dumps(answers)
        stage.open_gate("gate")
        assert running.get(timeout=15) == "secret"
        ended = celery_command(stage, "control", "shutdown", "-t", "3", "-d", node)
        assert ended.returncode == 0, ended.stderr
        assert worker.wait() == 0


def test_what_is_reserved_and_what_is_revoked_by_celerys_client(stage: Stage, celery: Celery) -> None:
    with stage.worker(TROUBLE, "-c", "1") as worker:
        node, client = stage.name_of(worker), stage.client()
        inspect = celery.control.inspect([node], timeout=5.0)
        running, doomed = client.send_task("wait", ["gate"]), client.send_task("good", ["doomed"])
        stage.traced("wait")
        assert {task["id"]: task["name"] for task in inspect.active()[node]} == {running.id: "wait"}
        [answer] = celery.control.revoke(doomed.id, reply=True, destination=[node], timeout=5.0)
        assert answer == {node: {"ok": f"tasks {doomed.id} flagged as revoked"}}
        assert doomed.id in inspect.revoked()[node]
        state, info = inspect.query_task(running.id)[node][running.id]
        assert (state, info["delivery_info"]["routing_key"]) == ("active", stage.queue)
        assert inspect.hello("celery@other")[node]["clock"] > 0
        assert inspect.clock()[node]["clock"] > 0
        celery.control.terminate(running.id, destination=[node])
        assert [trace["error"] for trace in stage.traced("interrupted")] == ["Terminated"]
        eventually(lambda: running.status == "REVOKED" and doomed.status == "REVOKED", "both have ended")
        assert stage.traces("good") == []


def test_what_taskq_does_not_do_is_said(stage: Stage, celery: Celery) -> None:
    with stage.worker() as worker:
        node = stage.name_of(worker)

        def ordered(method: str, **arguments: Any) -> Any:
            [answer] = celery.control.broadcast(method, arguments, [node], reply=True, timeout=5.0)
            return answer[node]

        assert "no rate limits" in ordered("rate_limit", task_name="add", rate_limit="1/s")["error"]
        assert "time limits belong to" in ordered("time_limit", task_name="add", hard=1)["error"]
        assert "--queues" in ordered("add_consumer", queue="other")["error"]
        assert "taskq pause" in ordered("cancel_consumer", queue="other")["error"]
        assert ordered("autoscale", max=3)["error"].startswith("taskq has no autoscaling")
        assert ordered("objgraph")["error"] == "taskq has no command 'objgraph'"
        assert "no signal 'SIGNOTHING'" in ordered("terminate", task_id="x", signal="SIGNOTHING")["error"]
        assert "no task id" in ordered("revoke", task_id={"a": 1})["error"]
        assert "above 0" in ordered("pool_grow", n="many")["error"]
        assert ordered("ping") == {"ok": "pong"}
        assert worker.logged("command_failed") == []


def test_events_tell_what_happened_and_nothing_is_told_before_somebody_asks(stage: Stage, celery: Celery) -> None:
    with stage.worker(TROUBLE, "--show-arguments") as worker:
        node, client = stage.name_of(worker), stage.client()
        with captured(celery) as heard:
            assert client.send_task("good", ["before"]).get(timeout=15) == "before"
            [answer] = celery.control.enable_events([node], reply=True, timeout=5.0)
            assert answer == {node: {"ok": "task events enabled"}}
            good = [client.send_task("good", [str(number)]) for number in range(20)]
            waiting, again = client.send_task("wait", ["gate"]), client.send_task("again", [1, 0.0])
            assert [one.get(timeout=15) for one in good] == [str(number) for number in range(20)]
            eventually(lambda: _of(heard, waiting.id) == ["task-received", "task-started"], f"it has begun: {heard}")
            stage.open_gate("gate")
            again.get(timeout=15)
            whole = ["task-received", "task-started", "task-succeeded"]
            eventually(lambda: [_of(heard, one.id) for one in good] == [whole] * len(good), "all is told of, in order, once")
            eventually(lambda: _of(heard, again.id)[-1:] == ["task-succeeded"], "the retry is told of")
            assert Counter(_of(heard, again.id))["task-retried"] == 1
            assert worker.stop() == 0
            eventually(lambda: heard[-1]["type"] == "worker-offline", f"it says goodbye {heard[-6:]}")
        own = [event for event in heard if event["hostname"] == node]
        assert "before" not in json.dumps(own)
        assert {event["pid"] for event in own} == {worker.pid}
        assert "worker-online" in {event["type"] for event in own}
        [received] = [event for event in own if event.get("uuid") == good[7].id and event["type"] == "task-received"]
        assert (received["name"], received["args"], received["kwargs"]) == ("good", "['7']", "{}")
        [succeeded] = [event for event in own if event.get("uuid") == good[7].id and event["type"] == "task-succeeded"]
        assert succeeded["result"] == "'7'"
        assert 0.0 < succeeded["runtime"] < 5.0


def _of(heard: list[dict[str, Any]], task_id: str) -> list[str]:
    return [event["type"] for event in heard if event.get("uuid") == task_id]


class Flower:
    """A running Flower; ``get`` returns what a page says."""

    def __init__(self, stage: Stage) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "celery", "-A", "tests.apps.celery_side", "flower"]
        command += ["--address=127.0.0.1", f"--port={self.port}", "--inspect_timeout=3000"]
        environment = stage.environment(FLOWER_UNAUTHENTICATED_API="true")
        self._log = (stage.folder / "flower.log").open("wb")
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as page:
            text: str = page.read().decode()
            return text

    def answers(self, path: str) -> Any:
        """What a page of its API says; None while there is none."""
        try:
            return json.loads(self.get(path))
        except (urllib.error.URLError, ConnectionError):
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


def test_flower_shows_workers_and_tasks(stage: Stage) -> None:
    with stage.worker("tests.apps.basic:app", "--events") as worker, Flower(stage) as flower:
        node, client = stage.name_of(worker), stage.client()
        eventually(lambda: (flower.answers("/api/workers?status=1") or {}).get(node), "Flower knows the worker", 30.0)
        done = client.send_task("mark", ["key"])
        done.get(timeout=15)
        failed = client.send_task("fail", ["no"])
        running = client.send_task("hold", ["x", "gate"])
        stage.traced("hold")
        told = {done.id: "SUCCESS", failed.id: "FAILURE", running.id: "STARTED"}

        def states() -> dict[str, str]:
            tasks = flower.answers("/api/tasks") or {}
            return {task_id: task["state"] for task_id, task in tasks.items() if task_id in told}

        eventually(lambda: states() == told, "Flower knows the tasks")
        assert "ValueError" in flower.answers(f"/api/task/info/{failed.id}")["exception"]
        about = flower.answers(f"/api/workers?refresh=1&workername={node}")[node]
        assert about["stats"]["total"] == {"fail": 1, "mark": 1}
        assert [task["id"] for task in about["active"]] == [running.id]
        assert [queue["name"] for queue in about["active_queues"]] == [stage.queue]
        assert "mark" in about["registered"]
        page = flower.get(f"/worker/{node}")
        assert str(worker.pid) in page
        assert stage.queue in page
        assert node in flower.get("/workers")
        assert f'flower_worker_online{{worker="{node}"}} 1.0' in flower.get("/metrics")
        stage.open_gate("gate")
