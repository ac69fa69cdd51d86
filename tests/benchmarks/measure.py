"""The measurements. Systems take turns within a round, so that a change of the machine's mood meets them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.process import BenchmarkFailed, Worker, used
from tests.benchmarks.producer import WARM_UP
from tests.benchmarks.stamps import VARIABLE, Stamps
from tests.benchmarks.systems import System

#: Root of the checkout: where ``tests`` can be imported from, whichever environment's Python it is.
ROOT = Path(__file__).parents[2]
#: By then what was executed has also been acked, and a worker that has just been busy is idle.
SETTLE_SECONDS = 0.3
START_SECONDS = 30.0
DRAIN_SECONDS = 60.0
#: What an idle worker does when it has just started is not its idling.
IDLE_AFTER_SECONDS = 2.0

#: For each system, the value that each round found for each figure. Seconds and megabytes; rates per second.
Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    tasks: int
    samples: int
    idle_seconds: float


class Bench:
    """Measures systems in one folder, with one RabbitMQ node and one environment of peers."""

    def __init__(self, plan: Plan, folder: Path, rabbitmq_url: str, peers: Path, say: Callable[[str], None]) -> None:
        self.figures: Figures = defaultdict(lambda: defaultdict(list))
        self._plan = plan
        self._folder = folder
        self._rabbitmq_url = rabbitmq_url
        self._peers = peers
        self._say = say
        self._stamps = Stamps(plan.tasks + plan.samples + WARM_UP)

    def run(self, systems: Sequence[System]) -> Figures:
        """Measure all of it; raises ``BenchmarkFailed``."""
        for number in range(1, self._plan.rounds + 1):
            for system in systems:
                self._say(f"round {number} of {self._plan.rounds}: {system.about}")
                self._busy(system, number)
        for system in systems:
            if system.idle:
                self._say(f"idle: {system.about}")
                self._idle(system)
        return self.figures

    def _busy(self, system: System, number: int) -> None:
        """Sending, draining, CPU and latency: one round."""
        self._stamps.clear()
        environment = self._environment(system, f"{system.name}-{number}")
        figures = self.figures[system.name]
        first = 0
        for sender, share in system.sends.items():
            count = round(share * self._plan.tasks)
            figures[sender].append(self._produce(system, environment, sender, "rate", first, count))
            first += count
        with self._worker(system, environment) as worker:
            self._drain(worker, figures)
            if system.latency:
                arguments = (system.one_by_one, "latency", self._plan.tasks, self._plan.samples)
                figures["latency"] += self._produce(system, environment, *arguments)

    def _drain(self, worker: Worker, figures: dict[str, list[float]]) -> None:
        """From the first task executed to the last; the processor time leaves out what came before the first."""
        tasks = self._plan.tasks
        worker.wait_until(self._stamps.begun, START_SECONDS, "the first task is executed", every=0.001)
        before, already = worker.cpu(), sum(map(bool, self._stamps.times(tasks)))
        try:
            worker.wait_until(lambda: all(self._stamps.times(tasks)), DRAIN_SECONDS, "every task is executed")
        except BenchmarkFailed as error:
            raise BenchmarkFailed(
                f"{self._stamps.times(tasks).count(0.0)} of {tasks} tasks were not executed: {error}"
            ) from None
        time.sleep(SETTLE_SECONDS)
        after, times = worker.cpu(), self._stamps.times(tasks)
        figures["drain"].append((tasks - 1) / (max(times) - min(times)))
        figures["cpu"].append(used(before, after) / (tasks - already))
        figures["supervisor cpu"].append((after[worker.pid] - before[worker.pid]) / (tasks - already))

    def _idle(self, system: System) -> None:
        """Memory and processor time of a worker that has executed one task and has nothing to do."""
        self._stamps.clear()
        environment = self._environment(system, f"{system.name}-idle")
        figures = self.figures[system.name]
        with self._worker(system, environment) as worker:
            self._produce(system, environment, system.one_by_one, "rate", 0, 1)
            worker.wait_until(self._stamps.begun, START_SECONDS, "the first task is executed")
            time.sleep(IDLE_AFTER_SECONDS)
            figures["memory"].append(worker.memory())
            before, started = worker.cpu(), time.monotonic()
            time.sleep(self._plan.idle_seconds)
            figures["idle cpu"].append(used(before, worker.cpu()) / (time.monotonic() - started))

    def _environment(self, system: System, queue: str) -> dict[str, str]:
        """A queue of its own for each measurement: what one leaves behind does not meet the next."""
        database = self._folder / f"{queue}.db"
        own = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
        return {
            **own,
            "PYTHONPATH": str(ROOT),
            VARIABLE: self._stamps.path,
            "BENCH_QUEUE": queue,
            "BENCH_BROKER": self._rabbitmq_url if system.broker == "rabbitmq" else str(database),
            "TASKQ_BROKER": self._rabbitmq_url if system.broker == "rabbitmq" else f"sqlite:///{database}",
            "TASKQ_DEFAULT_QUEUE": queue,
            **system.environment,
        }

    def _python(self, system: System) -> str:
        return str(self._peers) if system.peer else sys.executable

    def _worker(self, system: System, environment: dict[str, str]) -> Worker:
        return Worker([self._python(system), *system.worker], environment, self._folder / "worker.log")

    def _produce(self, system: System, environment: dict[str, str], sender: str, measure: str, first: int, count: int) -> Any:
        command = [self._python(system), "-m", "tests.benchmarks.producer", system.module, sender, measure]
        command += [str(first), str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"{system.about}: the producer failed:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout)
