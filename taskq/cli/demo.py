"""``taskq demo``: the main job on real input, while the demo kills the processes that do it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from taskq.errors import TaskqError

CHILDREN = 4
CHILD_KILL_EVERY = 0.1
DEADLINE = 120.0


@dataclass
class Tally:
    """What the demo did and saw."""

    files: int = 0
    executions: int = 0
    redelivered: int = 0
    child_kills: int = 0
    supervisor_kills: int = 0
    seconds: float = 0.0
    lost: int = 0
    wrong: int = 0


@click.command()
@click.option("--files", "most", type=click.IntRange(min=1), help="Examine at most so many files.  [default: all]")
@click.option("--seed", type=int, help="Choose the children to kill by this seed.")
def demo(most: int | None, seed: int | None) -> None:
    """See it work: every file of Python's standard library, while workers are being killed.

    \b
    Example:
      taskq demo

    Sends one task per file (a checksum and a line count) to a worker with 4 children on an SQLite broker in a temporary folder,
    SIGKILLs children all the while and the supervisor once, and compares every result with a plain loop. Exits 1 if one is
    missing or wrong.
    """
    seed = random.randrange(2**32) if seed is None else seed
    console = Console()
    with tempfile.TemporaryDirectory(prefix="taskq-demo-") as folder, contextlib.chdir(folder):
        os.environ["TASKQ_BROKER"] = os.environ["TASKQ_BACKEND"] = f"sqlite:///{folder}/demo.db"
        tally = run(console, standard_library()[:most], random.Random(seed))
    console.print(report(tally))
    console.print(f"seed {seed}")
    if tally.lost or tally.wrong:
        raise TaskqError(f"{tally.lost} results are missing and {tally.wrong} are wrong")


def standard_library() -> list[str]:
    """The source files of the standard library of this Python."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(
        str(path) for path in root.rglob("*.py") if "site-packages" not in path.parts and "dist-packages" not in path.parts
    )


def run(console: Console, files: list[str], chance: random.Random) -> Tally:
    """Send, disturb, wait and compare."""
    from taskq.cli.demo_tasks import EXECUTIONS, app, examine, examine_file  # only now the environment names the demo's broker

    tally = Tally(files=len(files))
    Path(EXECUTIONS).touch()
    half = len(files) // 2
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, Disturbed(chance, tally) as worker:
        bar = progress.add_task("files", total=len(files))
        started = time.monotonic()
        results = app.send_many(examine_file.s(path) for path in files[:half])

        def watch(done: Callable[[], bool]) -> None:
            while not done() and time.monotonic() - started < DEADLINE:
                progress.update(bar, completed=min(runs(), len(files) - 1))
                worker.disturb()

        def runs() -> int:
            return Path(EXECUTIONS).stat().st_size

        watch(lambda: runs() >= half // 2)
        worker.kill_supervisor()
        results += app.send_many(examine_file.s(path) for path in files[half:])
        waiting = list(results)

        def all_done() -> bool:
            while waiting and waiting[-1].wait(0.02):
                waiting.pop()
            return not waiting

        watch(all_done)
        progress.update(bar, completed=len(files) - len(waiting))
        tally.seconds = time.monotonic() - started
    for path, result in zip(files, results, strict=True):
        if not result.ready():
            tally.lost += 1
        elif result.meta()["result"] != examine(path):
            tally.wrong += 1
    executions = Path(EXECUTIONS).read_bytes()
    tally.executions, tally.redelivered = len(executions), executions.count(b"R")
    app.close()
    return tally


class Disturbed:
    """A worker that is killed now and then: its children all the while, its supervisor once, halfway."""

    def __init__(self, chance: random.Random, tally: Tally) -> None:
        self._chance = chance
        self._tally = tally
        self._next_kill = time.monotonic() + CHILD_KILL_EVERY
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "taskq", "worker", "-A", "taskq.cli.demo_tasks:app", "-c", str(CHILDREN)]
        with open("worker.log", "ab") as log:
            self._process = subprocess.Popen([*command, "--log-level", "warning"], stderr=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill_supervisor(self) -> None:
        """SIGKILL the supervisor, and start another worker."""
        self._process.kill()
        self._process.wait()
        self._tally.supervisor_kills += 1
        self._start()

    def disturb(self) -> None:
        """Kill a child if it is time to."""
        if self._process.poll() is not None:
            raise TaskqError(
                f"the worker ended by itself, with exit code {self._process.returncode}:\n{Path('worker.log').read_text()}"
            )
        if time.monotonic() >= self._next_kill and (children := list(self._children())):
            with contextlib.suppress(ProcessLookupError):  # it may have ended on its own in between
                os.kill(self._chance.choice(children), signal.SIGKILL)
                self._tally.child_kills += 1
            self._next_kill = time.monotonic() + CHILD_KILL_EVERY

    def _children(self) -> Iterator[int]:
        for zygote in _children_of(self._process.pid):
            yield from _children_of(zygote)


def _children_of(process_id: int) -> list[int]:
    """The child processes of a process."""
    if sys.platform == "linux":
        # The second word behind the name, which stands in brackets and may hold anything, is the parent.
        pairs = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # processes end while one looks
                if entry.name.isdigit():
                    pairs.append((entry.name, (entry / "stat").read_text().rpartition(")")[2].split()[1]))
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout  # noqa: S607  # where ps is, is the system's matter
        pairs = [(line.split()[0], line.split()[1]) for line in listing.splitlines()]
    return [int(pid) for pid, parent in pairs if int(parent) == process_id]


def report(tally: Tally) -> Table:
    """What came out, as a short table."""
    table = Table(title="taskq demo", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "files": tally.files,
        "executions": tally.executions,
        "children killed": tally.child_kills,
        "supervisors killed": tally.supervisor_kills,
        "redelivered": tally.redelivered,
        "lost": tally.lost,
        "wrong": tally.wrong,
        "tasks/s": round(tally.files / tally.seconds) if tally.seconds else 0,
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    return table
