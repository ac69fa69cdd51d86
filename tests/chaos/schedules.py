"""``python -m tests.chaos.schedules --seconds 300 --kill-every 5``: the leading one of several schedulers is killed, and again.

A schedule is due every second. Whatever happens to its schedulers, each tick is run once.
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec

from taskq.results import open_store
from taskq.results.ledger import Ledger
from taskq.sqlite import path_of
from taskq.workers.leader import LEASE, Lease
from tests.postgres_server import running_postgres
from tests.redis_server import running_redis
from tests.servers import running_node
from tests.support import ROOT, Stage, Worker, eventually

APP = "tests.apps.timetable:app"
QUEUE = "schedules"
SECOND = timedelta(seconds=1)
#: Half of the kills hit within so many seconds after a tick is due: while it is being sent.
SENDING = 0.02


def begin_scheduler(stage: Stage, number: int, **variables: str) -> Worker:
    """A ``taskq scheduler`` on this stage."""
    command = [sys.executable, "-m", "taskq", "scheduler", "-A", APP, "--log-format", "json"]
    return Worker(command, stage.environment(**variables), stage.folder / f"scheduler-{number}.log")


@contextmanager
def ledger_of(stage: Stage) -> Iterator[Ledger]:
    """The ledger of this stage's backend."""
    store = open_store(str(stage.keywords["backend"]), 60.0)
    assert store.ledger is not None
    try:
        yield store.ledger
    finally:
        store.close()


def leader_in(ledger: Ledger) -> int | None:
    """The process id of the leader, dead or alive; None where there is none."""
    entry = ledger.read(["leader timetable"]).get("leader timetable")
    holder = "" if entry is None else msgspec.json.decode(entry, type=Lease).holder
    return int(holder.split()[0].split("-")[-2]) if holder else None


def nominal_times(stage: Stage) -> Counter[datetime]:
    """How often each tick of the schedule that is due every second was run."""
    keys = (trace["tick"] for trace in stage.traces("tick"))
    return Counter(datetime.fromisoformat(key.partition("@")[2]) for key in keys if key.startswith("timetable/seconds@"))


@dataclass
class Siege:
    """What happened, and what was wrong with it."""

    kills: int = 0
    stops: int = 0
    ticks: int = 0
    dropped: int = 0
    longest_wait: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.ticks} ticks, {self.kills} leaders killed, {self.stops} stopped, {self.dropped} second copies dropped"
        return "\n".join([f"{what}, longest wait for a tick {self.longest_wait:.1f} s", *self.faults])


def besiege(stage: Stage, seconds: float, kill_every: float, seed: int, schedulers: int = 3, stop: float = 0.0) -> Siege:
    """Kill the leading scheduler every so many seconds, or, with the chance ``stop``, stop it for longer than its lease."""
    chance, siege, number = random.Random(seed), Siege(), schedulers
    with ExitStack() as stack:
        ledger = stack.enter_context(ledger_of(stage))
        worker = stack.enter_context(stage.worker(APP, "--no-scheduler")).started()
        running = [stack.enter_context(begin_scheduler(stage, index)) for index in range(schedulers)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _wait_for_a_moment(chance, kill_every)
            pid = leader_in(ledger)
            leader = next((one for one in running if one.pid == pid and one.process.poll() is None), None)
            if leader is None:
                continue
            if chance.random() < stop:
                siege.stops += _stop_for_a_while(stage, leader, ledger)
                continue
            leader.send(signal.SIGKILL)
            leader.wait()
            siege.kills += 1
            running[running.index(leader)] = stack.enter_context(begin_scheduler(stage, number))
            number += 1
        killed_until = datetime.now(UTC)
        eventually(lambda: max(nominal_times(stage), default=killed_until) > killed_until + SECOND, "ticks go on", 4 * LEASE)
        codes = [scheduler.stop() for scheduler in running]
        siege.faults += [f"a scheduler ended with {code}" for code in codes if code]
        eventually(lambda: stage.depth() == 0, "every message is run")
        worker.stop()
        siege.dropped = len(worker.logged("tick_copy_dropped"))
    _judge(siege, nominal_times(stage))
    siege.longest_wait = _longest_wait(stage)
    return siege


def _wait_for_a_moment(chance: random.Random, about: float) -> None:
    """Return at some moment, or just after a whole second, when a tick is being sent."""
    at = time.time() + chance.uniform(0.5, 1.5) * about
    if chance.random() < 0.5:
        at = int(at) + chance.uniform(0.0, SENDING)
    while (left := at - time.time()) > 0:
        time.sleep(left)


def _stop_for_a_while(stage: Stage, leader: Worker, ledger: Ledger) -> bool:
    """Stop the leader until another one leads; False where it was in the middle of a transaction of SQLite's.

    Then it keeps everybody out of the file, and nobody can take over, or do anything, until it goes on.
    """
    leader.send(signal.SIGSTOP)
    try:
        # A thread that has yet to stop may still begin a transaction.
        eventually(lambda: _threads_stand(leader.pid), "all its threads stand")
        if _is_locked(stage):
            return False
        eventually(lambda: leader_in(ledger) != leader.pid, "another one leads", 2.5 * LEASE)
        return True
    finally:
        leader.send(signal.SIGCONT)


def _threads_stand(process_id: int) -> bool:
    stats = [path.read_text() for path in Path(f"/proc/{process_id}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def _is_locked(stage: Stage) -> bool:
    backend = str(stage.keywords["backend"])
    if not backend.startswith("sqlite:"):
        return False
    with closing(sqlite3.connect(path_of(backend), timeout=0.5, isolation_level=None)) as connection:
        try:
            connection.execute("begin immediate")
        except sqlite3.OperationalError:
            return True
        connection.execute("rollback")
    return False


def _judge(siege: Siege, ran: Counter[datetime]) -> None:
    """Each tick from the first to the last has to be there, once."""
    siege.ticks = len(ran)
    first, last = min(ran), max(ran)
    expected = {first + number * SECOND for number in range(round((last - first) / SECOND) + 1)}
    siege.faults += [f"ran {count} times: {tick}" for tick, count in sorted(ran.items()) if count != 1]
    siege.faults += [f"never ran: {tick}" for tick in sorted(expected - set(ran))]
    siege.faults += [f"never was due: {tick}" for tick in sorted(set(ran) - expected)]


def _longest_wait(stage: Stage) -> float:
    moments: list[float] = [trace["at"] for trace in stage.traces("tick")]
    return max(later - earlier for earlier, later in pairwise(moments))


@contextmanager
def sqlite_stage(folder: Path) -> Iterator[Stage]:
    """Broker and backend are one file."""
    yield Stage(f"sqlite:///{folder}/taskq.db", QUEUE, folder)


@contextmanager
def file_stage(folder: Path) -> Iterator[Stage]:
    """RabbitMQ, and a file as the backend."""
    with running_node() as node:
        yield Stage(node.url, QUEUE, folder)


@contextmanager
def redis_stage(folder: Path) -> Iterator[Stage]:
    """RabbitMQ and Redis."""
    with running_node() as node, running_redis() as redis:
        yield Stage(node.url, QUEUE, folder, {"backend": redis.url})


@contextmanager
def postgres_stage(folder: Path) -> Iterator[Stage]:
    """RabbitMQ and PostgreSQL."""
    with running_node() as node, running_postgres() as postgres:
        yield Stage(node.url, QUEUE, folder, {"backend": postgres.url})


STAGES = {
    "sqlite": sqlite_stage,
    "rabbitmq+sqlite": file_stage,
    "rabbitmq+redis": redis_stage,
    "rabbitmq+postgresql": postgres_stage,
}


def main() -> int:
    """Besiege what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.schedules", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long leaders are killed")
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds between two kills, about")
    parser.add_argument("--stop", type=float, default=0.2, help="how many leaders are stopped for a while instead, of 1")
    parser.add_argument("--schedulers", type=int, default=3, help="how many schedulers")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="chooses the moments; random by default")
    parser.add_argument("--servers", choices=STAGES, action="append", help="only these")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    print(f"seed {options.seed}, in {ROOT}", flush=True)
    failed = False
    for servers in options.servers or STAGES:
        with tempfile.TemporaryDirectory(prefix="taskq-schedules-") as folder, STAGES[servers](Path(folder)) as stage:
            siege = besiege(stage, options.seconds, options.kill_every, options.seed, options.schedulers, options.stop)
            stage.close()
        print(f"{servers}: {siege}", flush=True)
        failed = failed or bool(siege.faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
