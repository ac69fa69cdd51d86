"""Deployments under load: none loses a task, none repeats one, none interrupts one."""

from __future__ import annotations

import signal
import time

from tests.integration.shop import Customers, Shop, settled_bill
from tests.integration.test_worker_health import Probe
from tests.support import Stage, Worker, eventually

#: What the old workers' tasks get to finish, in seconds.
GRACE = 10.0


def test_rolling_deployments_of_three_workers(stage: Stage) -> None:
    """As Kubernetes does them: an old worker is told to end once a new one consumes."""
    shop = Shop(stage)
    shop.write(0)
    every = workers = [shop.worker("--grace", f"{GRACE:g}") for _ in range(3)]
    ending: dict[Worker, float] = {}
    try:
        for worker in workers:
            worker.started()
        with Customers(stage) as customers:
            for version in range(1, rounds(stage) + 1):
                shop.write(version)
                new = [shop.worker("--grace", f"{GRACE:g}") for _ in range(3)]
                every = [*every, *new]
                for old, successor in zip(workers, new, strict=True):
                    successor.started()
                    old.send(signal.SIGTERM)
                    ending[old] = time.monotonic()
                workers = new
            stage.traced("began", 3, version=rounds(stage))
        for worker, since in ending.items():
            assert worker.wait(max(0.0, since + GRACE - time.monotonic())) == 0
        settled_bill(stage, customers)
        assert [worker.stop() for worker in workers] == [0, 0, 0]
    finally:
        for worker in every:
            worker.__exit__(None, None, None)
    seen = {trace["version"] for trace in stage.traces("began")}
    assert seen == set(range(rounds(stage) + 1)), "each version has done its share"
    assert [worker.text for worker in every if worker.logged("task_crashed") or "Traceback" in worker.text] == []
    assert [worker.pid for worker in every if worker.processes()] == []


def rounds(stage: Stage) -> int:
    """How often: each takes seconds, and what differs between the brokers is seen soon."""
    return 2 if stage.broker.startswith("sqlite:") else 3


def in_use(worker: Worker, count: int) -> None:
    """Wait until that many reloads have succeeded."""
    eventually(lambda: len(worker.logged("reloaded")) == count, "the new code is in use")


def test_reloads_of_one_worker(stage: Stage) -> None:
    shop = Shop(stage)
    shop.write(0)
    with shop.worker("-c", "3", "--http", "127.0.0.1:0").started() as worker, Customers(stage, longest=1.0) as customers:
        process = worker.pid
        for version in range(1, rounds(stage) + 1):
            shop.write(version)
            worker.send(signal.SIGHUP)
            in_use(worker, version)
            assert stage.client().send_task("hold", [f"probe {version}", "open"]).id
            stage.open_gate("open")
            (probe,) = stage.traced("hold", key=f"probe {version}")
            assert probe["version"] == version
        customers.leave()
        settled_bill(stage, customers)
        assert worker.logged("reload_failed") == []
        eventually(lambda: len(worker.logged("old_code_gone")) == rounds(stage), "every old zygote has ended")
        assert worker.pid == process
        assert Probe(worker).metric("taskq_redeliveries_total") == 0
        assert worker.stop() == 0
        assert [line for event in ("task_crashed", "child_died", "zygote_died") for line in worker.logged(event)] == []
        assert "Traceback" not in worker.text
    seen = {trace["version"] for trace in stage.traces("began")}
    assert seen == set(range(rounds(stage) + 1)), "each version has done its share"
