"""``taskq queues`` and ``taskq purge``: what waits at the broker."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click
import msgspec

from taskq import TaskQ
from taskq.broker.interface import QueueStats
from taskq.cli.options import BROKER_SETTINGS, json_option, print_json, print_table, with_app
from taskq.config import masked
from taskq.duration import spelled
from taskq.errors import BrokerError
from taskq.message import dead_letter_queue


@click.command()
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@json_option
@with_app(*BROKER_SETTINGS)
def queues(app: TaskQ, names: tuple[str, ...], as_json: bool) -> None:
    """Show what waits in each queue, and who fetches from it.

    \b
    Examples:
      taskq queues -A shop.app:app
      taskq queues mail default --json

    \b
    ready      messages that a worker may fetch
    held       messages in the custody of workers: they run, or are about to
    delayed    messages whose time has not come
    oldest     for how long the oldest ready message has waited
    consumers  workers that fetch
    dead       dead letters, see 'taskq dead'
    paused     whether workers are told to fetch nothing, see 'taskq pause'

    Without names: every queue that the app's tasks and settings name. What the broker does not tell shows as '-', and so does
    a queue that does not exist (yet). RabbitMQ tells neither held, delayed nor oldest, and no consumers while workers are busy.
    """
    publisher, paused = app.publisher, app.paused()
    rows = [
        _row(name, publisher.stats(name), publisher.depth(dead_letter_queue(name)), paused)
        for name in names or app.queue_names()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(_HEADER, [tuple(_cell(row[name]) for name in _HEADER) for row in rows])


_HEADER = ("queue", "ready", "held", "delayed", "oldest", "consumers", "dead", "paused")


def _row(name: str, stats: QueueStats | None, dead: int | None, paused: Collection[str]) -> dict[str, Any]:
    known = {} if stats is None else msgspec.structs.asdict(stats)
    about = {"queue": name, "dead": dead, "paused": name in paused}
    return {column: about[column] if column in about else known.get(column) for column in _HEADER}


def _cell(value: str | float | bool | None) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else ""
        case float():
            return spelled(value)
    return str(value)


@click.command()
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@with_app(*BROKER_SETTINGS)
def purge(app: TaskQ, queue: str, yes: bool, as_json: bool) -> None:
    """Delete the ready messages of QUEUE. Messages that a worker holds stay.

    \b
    Examples:
      taskq purge -A shop.app:app mail
      taskq purge mail.dead --yes
    """
    ready = app.publisher.depth(queue)
    where = masked(app.settings.broker)
    if ready is None:
        raise BrokerError(f"there is no queue {queue!r} on {where}")
    if not yes:
        click.confirm(f"Delete the ready messages ({ready}) of queue {queue!r} on {where} for good?", abort=True, err=True)
    purged = app.publisher.purge(queue)
    if as_json:
        print_json({"queue": queue, "purged": purged})
    else:
        click.echo(f"messages deleted from queue {queue!r}: {purged}")
