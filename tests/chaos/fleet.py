"""The fleet: workers and producers, each of which is started again when it ends, as systemd would."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.arena import Arena
from tests.support import PATIENCE, ROOT, Worker, eventually, processes_of

APP = "tests.chaos.tasks:app"


class Fleet:
    """So many workers and producers. ``tend`` starts again what has ended; ``own_exits`` are workers that ended unasked."""

    def __init__(self, arena: Arena, workers: int, producers: int, seed: int) -> None:
        self.stage = arena.stage
        self.seed = seed
        self.every: list[Worker] = []
        self.asked: set[int] = set()
        self.own_exits: list[tuple[int, str]] = []
        self.producers_started = 0
        self.workers = [self._worker(index) for index in range(workers)]
        self.producers = [self._producer() for _ in range(producers)]

    def __enter__(self) -> Fleet:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self.producers:
            producer.kill()
            producer.wait()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGKILL, group=True)
                worker.wait()

    def _worker(self, index: int) -> Worker:
        worker = self.stage.worker(APP, "-c", str(2 + index % 2), "--log-level", "info")
        self.every.append(worker)
        return worker

    def _producer(self) -> subprocess.Popen[bytes]:
        self.producers_started += 1
        command = [sys.executable, "-m", "tests.chaos.producer", f"p{self.producers_started}", str(self.seed)]
        return subprocess.Popen(command, cwd=ROOT, env=self.stage.environment(), start_new_session=True)

    def tend(self) -> None:
        """Start again whatever has ended."""
        for index, worker in enumerate(self.workers):
            if (code := worker.process.poll()) is not None:
                if worker.pid not in self.asked:
                    self.own_exits.append((code, f"{worker.pid}\n{worker.text[-2000:]}"))
                self.workers[index] = self._worker(index)
        for index, producer in enumerate(self.producers):
            if producer.poll() is not None and not self._enough():
                self.producers[index] = self._producer()

    def _enough(self) -> bool:
        return Path(self.stage.folder, "enough").exists()

    def tend_until_all_consume(self) -> None:
        """Wait until every worker is at work."""

        def consuming() -> bool:
            self.tend()
            return all(worker.logged("worker_consuming") for worker in self.workers)

        eventually(consuming, "every worker consumes", 30.0)

    def finish_producing(self) -> None:
        """The producers end when they have seen the gate."""
        self.stage.open_gate("enough")
        for producer in self.producers:
            producer.wait(PATIENCE)

    def stop(self) -> list[int]:
        """Tell every worker to end; returns the exit codes."""
        for worker in self.workers:
            self.asked.add(worker.pid)
            worker.send(signal.SIGTERM)
        return [_code(worker) for worker in self.workers]

    def left_running(self) -> list[int]:
        """The processes of workers, whichever, that still live."""
        return [process for worker in self.every for process in processes_of(worker.pid)]


def _code(worker: Worker) -> int:
    """The exit code of a worker that was told to end; one that was too young to listen dies of the signal, holding nothing."""
    code = worker.wait(40.0)
    return 0 if code == -signal.SIGTERM and not worker.logged("worker_started") else code
