"""RabbitMQ is killed and comes back: nothing is lost, nothing runs twice without need, and nobody has to help."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter

from taskq import TaskQ
from taskq.errors import BrokerError
from taskq.message import dead_letter_queue
from taskq.results.handle import AsyncResult
from taskq.signature import Signature
from tests.servers import RabbitMQ
from tests.support import Stage, Worker, eventually

BASIC = "tests.apps.basic:app"


class Producer(threading.Thread):
    """Sends until it is told to stop, and sends again what the broker did not confirm."""

    def __init__(self, client: TaskQ) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.enough = threading.Event()
        self.results: list[AsyncResult[str]] = []
        self.refused = 0

    def run(self) -> None:
        while not self.enough.is_set():
            try:
                self.results.append(self.client.send_task("mark", [f"task {len(self.results)}", 0.002]))
            except BrokerError:
                self.refused += 1
                self.enough.wait(0.02)


def held(stage: Stage, client: TaskQ, *keys: str) -> list[AsyncResult[str]]:
    """Tasks that run until the gate of their key opens; all of them run already."""
    results = client.send_many([Signature[str]("hold", [key, key]) for key in keys])
    stage.traced("hold", len(keys))
    return results


def outages(worker: Worker, count: int) -> None:
    """Each outage is in the log once."""
    lost, connected = worker.logged("broker_lost"), worker.logged("broker_connected")
    assert (len(lost), len(connected)) == (count, count)
    assert len(worker.logged("broker_unreachable")) <= count
    assert "Traceback" not in worker.text
    assert "guest:guest" not in worker.text


def test_a_restart_under_load(killable_stage: Stage, killable_rabbitmq: RabbitMQ) -> None:
    stage, node = killable_stage, killable_rabbitmq
    with stage.worker(BASIC, "-c", "3", "--max-crashes", "1") as worker:
        during, after = held(stage, stage.client(), "during", "after")
        node.sync()
        producer = Producer(stage.client())
        producer.start()
        eventually(lambda: len(producer.results) > 100, "the producer is at work")
        node.kill()
        eventually(lambda: producer.refused and worker.logged("broker_lost"), "producer and worker notice")
        stage.open_gate("during")
        sent = len(producer.results)
        node.start()
        eventually(lambda: len(producer.results) > sent + 100, "the producer goes on")
        eventually(lambda: worker.logged("broker_connected"), "the worker is connected again")
        stage.open_gate("after")
        producer.enough.set()
        producer.join()
        assert (during.get(timeout=15), after.get(timeout=15)) == ("during", "after")
        deadline = time.monotonic() + 15
        expected = [f"task {number}" for number in range(len(producer.results))]
        assert [result.get(timeout=max(0.0, deadline - time.monotonic())) for result in producer.results] == expected
        outages(worker, 1)
        assert worker.stop() == 0
    runs = Counter(trace["id"] for trace in stage.traces("mark"))
    assert {result.id for result in producer.results} <= runs.keys()
    assert Counter(trace["key"] for trace in stage.traces("hold")) == {"during": 1, "after": 1}
    assert stage.depth() == 0
    assert stage.depth(dead_letter_queue(stage.queue)) == 0


def test_a_worker_that_is_told_to_stop_in_an_outage_stops(killable_stage: Stage, killable_rabbitmq: RabbitMQ) -> None:
    stage, node = killable_stage, killable_rabbitmq
    client = stage.client()
    with stage.worker() as worker:
        (held_back,) = held(stage, client, "gate")
        node.sync()
        node.kill()
        eventually(lambda: worker.logged("broker_lost"), "the worker notices")
        worker.send(signal.SIGTERM)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        stage.open_gate("gate")
        assert worker.wait() == 0
        assert not worker.processes()
    node.start()
    # The client's connection died since its last call: it is replaced unnoticed.
    sent = client.send_task("add", [1, 2])
    with stage.worker():
        assert sent.get(timeout=15) == 3
        assert held_back.get(timeout=15) == "gate"
