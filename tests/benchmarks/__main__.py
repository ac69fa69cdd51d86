"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from tests.benchmarks import report
from tests.benchmarks.measure import ROOT, Bench, Figures, Plan
from tests.benchmarks.process import BenchmarkFailed
from tests.benchmarks.systems import SYSTEMS, System
from tests.servers import RabbitMQ

NAMES = [system.name for system in SYSTEMS]
WHOLE = Plan(rounds=3, tasks=8000, samples=70, idle_seconds=10.0)
QUICK = Plan(rounds=1, tasks=3000, samples=60, idle_seconds=2.0)


@click.command()
@click.option("--quick", is_flag=True, help="One round of fewer tasks: a rough picture in about a minute.")
@click.option("--rounds", type=click.IntRange(min=1), help="How often each system has its turn.  [default: 3]")
@click.option(
    "--only", multiple=True, metavar="SYSTEM", type=click.Choice(NAMES), help=f"Measure only these: {', '.join(NAMES)}."
)
@click.option(
    "--peers", type=click.Path(path_type=Path), help="Python with the peers installed.  [default: made in .venv-peers]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every round's values included, instead of the tables.")
def main(quick: bool, rounds: int | None, only: tuple[str, ...], peers: Path | None, as_json: bool) -> None:
    """Compare taskq with Celery, Dramatiq, Huey and a bare Kombu consumer on this machine.

    No-op tasks, two worker processes, brokers of its own; each figure is the median of the rounds. A drain is timed from the
    first task executed to the last, with all tasks queued beforehand; CPU is what all processes of the worker use per task,
    main what its first process uses (the supervisor); latency is from the call to the first line of the task.
    """
    plan = QUICK if quick else WHOLE
    plan = Plan(rounds or plan.rounds, plan.tasks, plan.samples, plan.idle_seconds)
    systems = [system for system in SYSTEMS if (system.name in only if only else not system.extra)]
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        figures = measure(plan, systems, peers)
    except BenchmarkFailed as error:
        raise click.ClickException(str(error)) from error
    about = {
        "cpus": os.cpu_count(),
        "load before": round(load, 2),
        "python": platform.python_version(),
        "rounds": plan.rounds,
        "tasks": plan.tasks,
        "seconds": round(time.monotonic() - started),
    }
    if as_json:
        print(json.dumps(report.as_json(figures, about), indent=2, ensure_ascii=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(f"\n{report.absolute(figures)}\n\n{report.against_targets(figures)}")


def measure(plan: Plan, systems: list[System], peers: Path | None) -> Figures:
    """Start what the systems need, measure them, and leave nothing running."""
    if any(system.peer for system in systems):
        peers = (peers or installed_peers()).absolute()
    # The checkout's disk, not /tmp: in memory, fsync would cost nothing.
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=build, prefix="benchmarks-"))
        tempfile.tempdir = folder
        url = ""
        if any(system.broker == "rabbitmq" for system in systems):
            node = RabbitMQ(frugal=False)
            stack.callback(node.stop)
            url = node.start().url
        return Bench(plan, Path(folder), url, peers or Path(), lambda text: print(text, file=sys.stderr, flush=True)).run(
            systems
        )


def installed_peers() -> Path:
    """The environment that the Makefile makes, made if need be."""
    subprocess.run(["make", "--silent", ".venv-peers/installed"], cwd=ROOT, check=True)
    return ROOT / ".venv-peers" / "bin" / "python"


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks")
