"""A real worker is asked how it is: idle, busy, without its broker, deaf, and about to end."""

from __future__ import annotations

import http.client
import json
import signal
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from taskq.signature import Signature
from taskq.workers.watchdog import DOUBT_SECONDS, WATCH_SECONDS
from tests.metrics import Sample, samples
from tests.proxy import Proxy
from tests.servers import RabbitMQ
from tests.support import PATIENCE, Stage, Worker, eventually
from tests.systemd import Systemd

BASIC = "tests.apps.basic:app"
TROUBLE = "tests.apps.trouble:app"
HTTP = ("--http", "127.0.0.1:0")
#: How AMQP writes the method basic.deliver.
DELIVER = b"\x00\x3c\x00\x3c"


@pytest.fixture
def node(killable_rabbitmq: RabbitMQ) -> RabbitMQ:
    return killable_rabbitmq


class Probe:
    """Asks this worker."""

    def __init__(self, worker: Worker) -> None:
        [listening] = eventually(lambda: worker.logged("http_listening"), "the worker listens")
        self.address = urlsplit(listening["url"])

    def ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(str(self.address.hostname), self.address.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def told(self, path: str) -> tuple[int, str]:
        """The answer of a probe, and why."""
        status, body = self.ask(path)
        return status, json.loads(body)["why"]

    @property
    def state(self) -> tuple[int, int]:
        """Whether it is live, and whether it is ready."""
        return self.ask("/livez")[0], self.ask("/readyz")[0]

    def becomes(self, live: int, ready: int, seconds: float = PATIENCE) -> None:
        eventually(lambda: self.state == (live, ready), f"/livez says {live} and /readyz {ready}", seconds)

    def metrics(self) -> list[Sample]:
        return samples(self.ask("/metrics")[1].decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of what is told under this name with these labels."""
        found = [sample for sample in self.metrics() if sample.name == f"taskq_{name}"]
        return sum(sample.value for sample in found if sample.labels.items() >= labels.items())


def test_idle_then_busy_then_about_to_end(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker(BASIC, *HTTP).started() as worker:
        probe = Probe(worker)
        probe.becomes(200, 200)
        client = stage.client()
        results = client.send_many(Signature[int]("add", [number, 1]) for number in range(3000))
        times = []
        while not results[-1].ready():
            started = time.monotonic()
            assert probe.state == (200, 200)
            times.append((time.monotonic() - started) / 2)
        assert len(times) > 3, "it was busy"
        assert statistics.median(times) < 0.05
        client.send_many(Signature[str]("hold", [key, "gate"]) for key in ("one", "two", "three"))
        stage.traced("hold", 2)
        eventually(lambda: probe.told("/livez") == (200, "consuming; 2 of 2 children busy"), "all are busy")
        assert probe.ask("/readyz")[0] == 200
        eventually(lambda: probe.metric("queue_ready_messages", queue=stage.queue) == 1, "the third waits")
        assert probe.metric("queue_oldest_age_seconds") > 0
        worker.send(signal.SIGTERM)
        probe.becomes(200, 503)
        assert probe.told("/readyz") == (503, "it is told to end; 2 of 2 children busy")
        stage.open_gate("gate")
        assert worker.wait() == 0


def test_known_work_is_counted_exactly(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker(TROUBLE, *HTTP, "--max-crashes", "2").started() as worker:
        client = stage.client()
        calls: list[Signature[Any]] = [
            Signature[str]("good", ["a", 0.06]),
            Signature[str]("good", ["b"]),
            Signature[int]("flaky", [2]),
            Signature[None]("segfault", []),
            Signature[None]("limited", []),
            Signature[None]("nobody", []),
        ]
        for result in client.send_many(calls[:-1]):
            result.wait(PATIENCE)
        client.send_many(calls[-1:])
        probe = Probe(worker)

        def outcomes(task: str) -> dict[str, float]:
            found = [sample for sample in probe.metrics() if sample.name == "taskq_task_outcomes_total"]
            return {sample.labels["outcome"]: sample.value for sample in found if sample.labels["task"] == task}

        eventually(lambda: outcomes("other").get("delayed"), "a task that nobody knows is given back")
        assert outcomes("good") == {"succeeded": 2}
        assert outcomes("flaky") == {"retried": 2, "succeeded": 1}
        assert outcomes("segfault") == {"crashed": 1, "dead-lettered": 1}
        assert outcomes("limited") == {"dead-lettered": 1}
        runs = [probe.metric("task_run_seconds_count", task=task) for task in ("good", "flaky", "segfault", "other")]
        assert runs == [2, 3, 0, 0], "what took its child down has not been timed"
        assert probe.metric("task_run_seconds_sum", task="good") > 0.05
        assert probe.metric("task_wait_seconds_count", task="flaky") == 3
        assert probe.metric("task_wait_seconds_sum") < PATIENCE
        assert probe.metric("child_deaths_total", cause="SIGSEGV", reason="") == 2
        assert probe.metric("child_deaths_total", cause="SIGKILL", reason="time limit") == 1
        assert probe.metric("child_deaths_total") == 3
        assert probe.metric("dead_letters_total", reason="crashed") == 1
        assert probe.metric("dead_letters_total", reason="time limit") == 1
        assert probe.metric("redeliveries_total") == 0
        assert probe.metric("publish_seconds_count") >= 5, "two retries, a crash, two dead letters"
        assert probe.metric("slots") == 2
        assert probe.metric("child_memory_bytes") > 2**20
        assert probe.metric("broker_connected") == probe.metric("broker_connections_total") == 1


def test_the_wait_of_a_delayed_message_begins_when_it_is_due(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(BASIC, *HTTP).started() as worker:
        probe, client = Probe(worker), sqlite_stage.client()
        assert client.send_task("add", [1, 1], countdown=1.5).get(timeout=PATIENCE) == 2
        eventually(lambda: probe.metric("task_wait_seconds_count", task="add") == 1, "it is counted")
        assert probe.metric("task_wait_seconds_bucket", task="add", le="1.0") == 1


def test_a_broker_that_goes_and_comes_back(node: RabbitMQ, queue: str, tmp_path: Path) -> None:
    stage = Stage(node.url, queue, tmp_path)
    with stage.worker(BASIC, *HTTP).started() as worker:
        probe = Probe(worker)
        probe.becomes(200, 200)
        node.sync()
        node.kill()
        probe.becomes(200, 503)
        assert "the broker has been away" in probe.told("/readyz")[1]
        assert probe.metric("broker_connected") == 0
        node.restart()
        # A node that answers is not up yet.
        probe.becomes(200, 200, 3 * PATIENCE)
        assert probe.metric("broker_connections_total") == 2
        assert worker.stop() == 0


def test_a_deaf_worker_is_not_live_until_it_hears_again(node: RabbitMQ, queue: str, tmp_path: Path) -> None:
    stage = Stage(node.url, queue, tmp_path)
    client = stage.client()
    with Proxy(node.port) as network:
        deaf = Stage(node.url.replace(str(node.port), str(network.port)), queue, tmp_path)
        with deaf.worker(BASIC, *HTTP, "--heartbeat", "60").started() as worker:
            probe = Probe(worker)
            probe.becomes(200, 200)
            network.mute(DELIVER, queue.encode())
            results = client.send_many(Signature[int]("add", [number, 1]) for number in range(30))
            probe.becomes(503, 503, WATCH_SECONDS + DOUBT_SECONDS + PATIENCE)
            assert worker.logged("worker_deaf")
            network.flow()
            probe.becomes(200, 200, WATCH_SECONDS + DOUBT_SECONDS + PATIENCE)
            assert [result.get(timeout=PATIENCE) for result in results] == [number + 1 for number in range(30)]
            assert worker.stop() == 0
    stage.close()


def test_systemd_hears_of_everything_in_order(sqlite_stage: Stage) -> None:
    with Systemd(sqlite_stage.folder) as systemd:
        heard: list[str] = []

        def said(word: str, times: int = 1) -> bool:
            heard.extend(systemd.heard())
            return heard.count(word) >= times

        variables = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
        with sqlite_stage.worker(BASIC, **variables) as worker:
            eventually(lambda: said("WATCHDOG=1", 4), "it gives signs of life")
            told = sqlite_stage.client().send_task("environment", []).get(timeout=PATIENCE)
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(told)
            assert worker.stop() == 0
            eventually(lambda: said("STOPPING=1"), "it says that it ends")
        milestones = [word for word in heard if not word.startswith("STATUS=")]
        assert [word for word in milestones if word != "WATCHDOG=1"] == ["READY=1", "STOPPING=1"]
        assert milestones[milestones.index("READY=1") + 1] == "WATCHDOG=1"
        assert milestones[-1] == "STOPPING=1"
        assert heard[0] == "STATUS=the broker has yet to be reached"


def test_a_port_that_is_taken_stops_the_worker_at_its_start(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(BASIC, *HTTP).started() as first:
        port = Probe(first).address.port
        with sqlite_stage.worker(BASIC, "--http", f"127.0.0.1:{port}") as second:
            assert second.wait() == 1
            assert f"nothing can listen on 127.0.0.1 port {port}" in second.text
            assert "Traceback" not in second.text
        assert first.stop() == 0
