"""Chaos: workers and producers on one stage, and SIGKILLs at random instants.

``python -m tests.integration.chaos NAME`` is a producer: it sends until the gate ``enough`` opens, and leaves a trace of each
call that the broker has confirmed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from taskq import TaskQ
from taskq.errors import BrokerError
from tests.apps.traces import gate, trace
from tests.support import ROOT, Stage, Worker


def produce(name: str) -> None:
    """Send tasks of different lengths until told to stop; what failed is sent again under another id."""
    client, chance, number = TaskQ("producer"), random.Random(), 0
    while not gate("enough").exists():
        number += 1
        seconds = chance.choice((0.0, 0.0, 0.0, 0.001, 0.005, 0.03))
        try:
            result = client.send_task("mark", [f"{name} {os.getpid()} {number}", seconds])
        except BrokerError as error:
            trace("refused", error=repr(error))
            continue
        trace("confirmed", id=result.id, key=f"{name} {os.getpid()} {number}")
        time.sleep(chance.uniform(0.0, 0.01))


class Chaos:
    """Two workers with three children each, and two producers; whatever is killed is started again."""

    def __init__(self, stage: Stage, seed: int) -> None:
        print(f"chaos seed {seed}")
        self.stage = stage
        self.chance = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self._stack = ExitStack()
        self.workers = [self._worker() for _ in range(2)]
        self.producers = [self._producer(name) for name in ("left", "right")]

    def __enter__(self) -> Chaos:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _worker(self) -> Worker:
        return self._stack.enter_context(self.stage.worker("tests.apps.basic:app", "-c", "3"))

    def _producer(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.integration.chaos", name]
        process = subprocess.Popen(command, cwd=ROOT, env=self.stage.environment())
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def rage(self, seconds: float) -> None:
        """Kill for so many seconds: mostly children, now and then a supervisor, a zygote or a producer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.02, 0.2))
            index = self.chance.randrange(2)
            what = self.chance.choices(("child", "supervisor", "zygote", "producer"), (70, 10, 5, 15))[0]
            if what == "producer":
                self.producers[index].kill()
                self.producers[index].wait()
                self.producers[index] = self._producer(f"{self.kills.total()}")
            elif what == "supervisor":
                self.workers[index].send(signal.SIGKILL)
                self.workers[index].wait()
                self.workers[index] = self._worker()
            elif not self._kill_one(what, self.workers[index]):
                continue
            self.kills[what] += 1
        print(f"killed: {dict(self.kills)}")

    def _kill_one(self, what: str, worker: Worker) -> bool:
        """Kill the worker's zygote or one of its children, if it has any."""
        parents = {process: parent for process in worker.processes() if (parent := _parent_of(process)) is not None}
        zygotes = {process for process, parent in parents.items() if parent == worker.pid}
        children = {process for process, parent in parents.items() if parent in zygotes}
        victims = sorted(zygotes if what == "zygote" else children)
        # A zygote that dies before the application is imported is a start that failed: the worker ends then.
        if not victims or not worker.logged("worker_started"):
            return False
        try:
            os.kill(self.chance.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def calm(self) -> None:
        """Nothing is killed any more, and the producers stop sending."""
        self.stage.open_gate("enough")
        for producer in self.producers:
            assert producer.wait(15) == 0


def _parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


if __name__ == "__main__":
    produce(sys.argv[1])
