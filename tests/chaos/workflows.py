"""``python -m tests.chaos.workflows --runs 500``: chains, groups and chords, while children are killed.

Each workflow ends with one call of its last step, or, where a task of it fails, with one call of its errback: never both, never
two. A step whose process was killed runs again, which is the same call: its ``crashes`` are counted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import celery.canvas
from celery import Celery

from taskq import chain, chord, group
from taskq.signature import Signature
from tests.postgres_server import running_postgres
from tests.redis_server import running_redis
from tests.servers import running_node
from tests.support import Stage, Worker, close_celery, eventually

#: How long all may take once the last workflow was sent, in seconds.
PATIENCE = 120.0
#: The last step, and the errback.
FINISH, GIVE_UP = "finish", "give_up"

Call = Callable[..., Any]


class Canvas:
    """How a client, ours or Celery's, makes workflows."""

    def __init__(self, call: Call, chain: Call, group: Call, chord: Call, close: Callable[[], Any] = int) -> None:
        self.call = call
        self.chain = chain
        self.group = group
        self.chord = chord
        self.close = close


def ours(stage: Stage) -> Canvas:
    """Ours."""
    client = stage.client()
    return Canvas(lambda name, *args, **kwargs: Signature(name, args, kwargs, send=client._send), chain, group, chord)


def celerys(stage: Stage) -> Canvas:
    """Celery's."""
    client: Any = Celery("storm", broker=stage.broker, backend=stage.settings["backend"], set_as_current=True)
    client.conf.task_default_queue = stage.queue
    canvas: Any = celery.canvas

    def call(task: str, *args: Any, **kwargs: Any) -> Any:
        return client.signature(task, args=args, kwargs=kwargs)

    return Canvas(call, canvas.chain, canvas.group, canvas.chord, lambda: close_celery(client))


def workflow(canvas: Canvas, chance: Random, key: str) -> tuple[Any, str]:
    """A workflow, and what it has to end with."""

    def step() -> Any:
        return canvas.call("work", chance.randrange(100), chance.choice((0.0, 0.0, 0.01, 0.05)))

    def then() -> Any:
        return canvas.call("note")

    finish, give_up, fail = canvas.call(FINISH, key=key), canvas.call(GIVE_UP, key=key), canvas.call("fail")
    members = [step() for _ in range(chance.randint(1, 6))]
    inner = canvas.chord([step(), step()], then())
    good = [
        lambda: canvas.chain(step(), then(), then(), finish),
        lambda: canvas.chord(members, finish),
        lambda: canvas.chain(step(), canvas.group(then(), then()), then(), finish),
        lambda: canvas.chord([inner, *members, canvas.chain(step(), then())], finish),
    ]
    bad = [
        lambda: canvas.chord([*members, fail, fail.clone()], finish),
        lambda: canvas.chord([canvas.chain(step(), fail, then()), *members], finish),
        lambda: canvas.chain(step(), fail, then(), finish),
    ]
    made: Callable[[], Any] = chance.choice([*good, *bad])
    flow = made()
    if made in good:
        return flow, FINISH
    flow.link_error(give_up)
    return flow, GIVE_UP


class Monkey(threading.Thread):
    """Keeps two workers running, and kills one of their children every now and then; with ``whole``, whole workers too."""

    def __init__(self, stage: Stage, chance: Random, *, whole: bool) -> None:
        super().__init__()
        self.killed = {"children killed": 0, "workers killed": 0}
        self._stage = stage
        self._chance = chance
        self._whole = whole
        self._enough = threading.Event()
        self.workers = [self._worker(), self._worker()]
        for worker in self.workers:
            worker.started()

    def _worker(self) -> Worker:
        return self._stage.worker("tests.apps.flows:app", "-c", "3", TASKQ_MAX_CRASHES="50")

    def run(self) -> None:
        while not self._enough.wait(self._chance.uniform(0.005, 0.08)):
            index = self._chance.randrange(len(self.workers))
            worker = self.workers[index]
            if self._whole and self._chance.random() < 0.03:
                worker.send(signal.SIGKILL, group=True)
                worker.wait()
                self.killed["workers killed"] += 1
                self.workers[index] = self._worker()
            # The first two are the supervisor and its zygote.
            elif children := sorted(worker.processes())[2:]:
                self.killed["children killed"] += _kill(self._chance.choice(children))

    def end(self) -> None:
        """Kill nobody any more."""
        self._enough.set()
        self.join()


def _kill(process: int) -> bool:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def storm(stage: Stage, canvas: Canvas, runs: int, seed: int, *, whole: bool = False) -> tuple[list[str], dict[str, int]]:
    """So many workflows; returns what went wrong, and the figures."""
    chance, problems = Random(seed), []
    expected: dict[str, str] = {}
    monkey = Monkey(stage, Random(f"{seed} monkey"), whole=whole)
    monkey.start()
    try:
        for number in range(runs):
            key = f"{number}-{uuid.uuid4().hex[:6]}"
            flow, expected[key] = workflow(canvas, chance, key)
            flow.apply_async()
        eventually(lambda: _keys(stage) >= expected.keys(), "every workflow ends", PATIENCE)
        monkey.end()
        eventually(lambda: not stage.depth(), "nothing is left to do", PATIENCE)
    except AssertionError as error:
        problems.append(str(error))
    finally:
        monkey.end()
        for worker in monkey.workers:
            worker.started().stop()
    return problems + faults(stage, expected), {"workflows": runs, **monkey.killed, "calls": len(_ends(stage))}


def _ends(stage: Stage) -> list[dict[str, Any]]:
    return [trace for trace in stage.traces() if trace["event"] in (FINISH, GIVE_UP)]


def _keys(stage: Stage) -> set[str]:
    return {trace["key"] for trace in _ends(stage)}


def faults(stage: Stage, expected: Mapping[str, str]) -> list[str]:
    """Which workflows did not end as they had to, with one call."""
    calls: dict[str, set[tuple[str, str]]] = {key: set() for key in expected}
    runs: Counter[tuple[str, str]] = Counter()
    for trace in _ends(stage):
        calls[trace["key"]].add((trace["event"], trace["id"]))
        runs[trace["id"], str(trace["attempt"])] += 1
    wrong = {key: ends for key, ends in calls.items() if [event for event, _ in ends] != [expected[key]]}
    twice = [task_id for (task_id, _), count in runs.items() if count > 1]
    return [
        *(f"{key}: not one {expected[key]} but {ends}" for key, ends in wrong.items()),
        *(f"task {task_id} ran twice although nothing had happened to it" for task_id in twice),
    ]


@contextmanager
def staged(broker: str, backend: str, folder: Path) -> Iterator[Stage]:
    """A stage with servers of its own."""
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/taskq.db" if broker == "sqlite" else stack.enter_context(running_node()).url
        results = url if backend == broker == "sqlite" else stack.enter_context(backend_url(backend, folder))
        stage = Stage(url, "storm", folder, {"backend": results, **({} if broker == "sqlite" else {"queue_type": "classic"})})
        yield stage
        stage.close()


@contextmanager
def backend_url(backend: str, folder: Path) -> Iterator[str]:
    """The URL of a backend of one's own."""
    if backend == "sqlite":
        yield f"sqlite:///{folder}/results.db"
    elif backend == "redis":
        with running_redis() as server:
            yield server.url
    else:
        with running_postgres() as server:
            yield server.url


def main() -> int:
    """Run the storm that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.workflows", description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="how many workflows")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="chooses what happens; random by default")
    parser.add_argument("--broker", choices=["sqlite", "rabbitmq"], default="sqlite")
    parser.add_argument("--backend", choices=["sqlite", "redis", "postgres"], default="sqlite")
    parser.add_argument("--whole", action="store_true", help="kill whole workers too (once each holds on SQLite alone)")
    parser.add_argument("--celery", action="store_true", help="the workflows are sent by a Celery client (RabbitMQ and Redis)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    client = celerys if options.celery else ours
    since = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="taskq-flows-") as folder,
        staged(options.broker, options.backend, Path(folder)) as stage,
    ):
        wrong, figures = storm(stage, client(stage), options.runs, options.seed, whole=options.whole)
    for name, value in {**figures, "seconds": round(time.monotonic() - since)}.items():
        print(f"{name}: {value}")
    print("\n".join(wrong) or "each ended once")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
