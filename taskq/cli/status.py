"""``taskq status`` and ``taskq ps``: the workers, what each of them runs, and the queues."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from taskq import TaskQ
from taskq.broker import open_caller
from taskq.cli.options import BROKER_SETTINGS, Seconds, json_option, print_json, print_table, printable, with_app
from taskq.cli.workers import ask, nobody, refused, span, with_workers
from taskq.errors import BrokerError
from taskq.message import dead_letter_queue


class Section(NamedTuple):
    """A table of the screen."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Show it live, until Ctrl-C.")
@click.option("--interval", type=Seconds(above=0.1), default=2.0, show_default=True, help="Seconds between two looks.")
@json_option
@with_workers
@with_app(*BROKER_SETTINGS)
def status(app: TaskQ, watch: bool, interval: float, as_json: bool, nodes: tuple[str, ...], timeout: float) -> None:
    """Show the workers, what each of them runs and for how long, and the queues.

    \b
    Examples:
      taskq status -A shop.app:app
      taskq status --watch
      taskq status --json -d taskq@web1-4711-3f9a

    With -A, the workers of that application; without, all on the broker. 'per s' is over the last minute. Exits with 1 if no
    worker answers.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch is a screen for people; for programs and files, call --json again and again")
    if watch:
        _watch(app, nodes, timeout, interval)
        return
    with open_caller(app.settings) as caller:
        answers = ask(caller, app, "status", {}, nodes, timeout)
    if not answers:
        raise nobody(app, nodes, timeout)
    queues = _queues(app, answers)
    if as_json:
        print_json({"workers": answers, "queues": queues})
        return
    for number, section in enumerate(_sections(answers, queues)):
        if number:
            click.echo()
        print_table(section.header, section.rows)


@click.command()
@json_option
@with_workers
@with_app(*BROKER_SETTINGS)
def ps(app: TaskQ, as_json: bool, nodes: tuple[str, ...], timeout: float) -> None:
    """List the tasks that run now, one a line, those that have run longest first.

    \b
    Examples:
      taskq ps -A shop.app:app
      taskq ps --json

    Exits with 1 if no worker answers.
    """
    with open_caller(app.settings) as caller:
        answers = ask(caller, app, "status", {}, nodes, timeout)
    if not answers:
        raise nobody(app, nodes, timeout)
    running = sorted(_running(answers), key=lambda task: -task["seconds"])
    if as_json:
        print_json(running)
    else:
        section = _tasks(running)
        print_table(section.header, section.rows)


def _watch(app: TaskQ, nodes: tuple[str, ...], timeout: float, interval: float) -> None:
    """Look again and again; a broker that is away is shown as that, and asked again."""
    with Live(console=Console(highlight=False), screen=False, auto_refresh=False) as live:
        while True:
            try:
                with open_caller(app.settings) as caller:
                    while True:
                        looked_at = time.monotonic()
                        answers = ask(caller, app, "status", {}, nodes, timeout)
                        live.update(_screen(_sections(answers, _queues(app, answers)), answers), refresh=True)
                        time.sleep(max(0.0, looked_at + interval - time.monotonic()))
            except BrokerError as error:
                live.update(Text(str(error), style="red"), refresh=True)
                time.sleep(interval)


def _screen(sections: list[Section], answers: dict[str, Any]) -> Group:
    shown: list[RenderableType] = []
    for section in sections:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in section.header:
            table.add_column(name)
        for row in section.rows:
            table.add_row(*map(Text, row))
        shown += [table, Text()]
    when = f"{time.strftime('%H:%M:%S')}, {len(answers)} worker{'' if len(answers) == 1 else 's'}; Ctrl-C ends this"
    return Group(*shown, Text(when, style="dim"))


def _sections(answers: dict[str, Any], queues: list[dict[str, Any]]) -> list[Section]:
    sections = [Section(_WORKERS, [_worker(name, answer) for name, answer in answers.items()])]
    if running := list(_running(answers)):
        sections.append(_tasks(running))
    sections.append(Section(_QUEUES, [tuple(_cell(queue[name]) for name in _QUEUES) for queue in queues]))
    return sections


_WORKERS = ("worker", "app", "state", "up", "children", "busy", "reserved", "done", "per s")
_QUEUES = ("queue", "ready", "held", "oldest", "dead", "workers", "paused")


def _worker(name: str, answer: dict[str, Any]) -> tuple[str, ...]:
    if error := refused(answer):
        return (name, "-", error, *["-"] * (len(_WORKERS) - 3))
    children = answer["children"]
    return (
        name,
        answer["app"],
        answer["state"],
        span(answer["uptime"]),
        str(len(children)),
        str(sum(child["task"] is not None for child in children)),
        str(answer["reserved"]),
        str(answer["finished"]),
        f"{answer['rate']:.1f}",
    )


def _running(answers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, answer in answers.items():
        for child in answer.get("children", ()):
            if child["task"] is not None:
                yield {"worker": name, "pid": child["pid"], **child["task"]}


def _tasks(running: list[dict[str, Any]]) -> Section:
    rows: list[tuple[str, ...]] = []
    for task in running:
        call = printable(f"{task['name']}" + (f" {task['args']} {task['kwargs']}" if "args" in task else ""))
        rows.append((call, printable(str(task["id"])), task["queue"], span(task["seconds"]), str(task["pid"]), task["worker"]))
    return Section(("task", "id", "queue", "for", "pid", "worker"), rows)


def _queues(app: TaskQ, answers: dict[str, Any]) -> list[dict[str, Any]]:
    """The queues that the app names and those that its workers consume, with what waits in them."""
    consumed = [queue for answer in answers.values() for queue in answer.get("queues", ())]
    paused = {queue for answer in answers.values() for queue in answer.get("paused", ())}
    return [
        {
            "queue": queue,
            **_stats(app, queue),
            "dead": app.publisher.depth(dead_letter_queue(queue)),
            "workers": consumed.count(queue),
            "paused": queue in paused,
        }
        for queue in dict.fromkeys((*app.queue_names(), *consumed))
    ]


def _stats(app: TaskQ, queue: str) -> dict[str, Any]:
    """What the broker tells of the queue."""
    stats = app.publisher.stats(queue)
    return {name: None if stats is None else getattr(stats, name) for name in ("ready", "held", "oldest")}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return span(value)
    return "-" if value is None else str(value)
