"""``taskq queues`` and ``taskq purge``: what waits at the broker."""

from __future__ import annotations

import click

from taskq import TaskQ
from taskq.cli.options import BROKER_SETTINGS, json_option, print_json, print_table, with_app
from taskq.config import masked
from taskq.errors import BrokerError
from taskq.message import dead_letter_queue


@click.command()
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@json_option
@with_app(*BROKER_SETTINGS)
def queues(app: TaskQ, names: tuple[str, ...], as_json: bool) -> None:
    """Show how many messages are ready in each queue, how many dead letters there are, and whether the queue is paused.

    \b
    Examples:
      taskq queues -A shop.app:app
      taskq queues mail default --json

    Without names: every queue that the app's tasks and settings name. Messages that a worker holds are not counted as ready.
    A queue that does not exist (yet) shows as '-'.
    """
    depth, paused = app.publisher.depth, app.paused()
    rows = [(name, depth(name), depth(dead_letter_queue(name)), name in paused) for name in names or app.queue_names()]
    header = ("queue", "ready", "dead", "paused")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, [tuple(_cell(value) for value in row) for row in rows])


def _cell(value: str | int | bool | None) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else ""
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
