"""``taskq revoke``, ``taskq pause`` and ``taskq resume``: what operators say to all workers."""

from __future__ import annotations

import click

from taskq import TaskQ
from taskq.cli.options import BROKER_SETTINGS, json_option, print_json, with_app
from taskq.config import masked


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--terminate", is_flag=True, help="End the task where it runs, too.")
@json_option
@with_app(*BROKER_SETTINGS)
def revoke(app: TaskQ, task_ids: tuple[str, ...], terminate: bool, as_json: bool) -> None:
    """Have the tasks ID not run any more.

    \b
    Examples:
      taskq revoke -A shop.app:app 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
      taskq revoke 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a --terminate

    It holds wherever the task waits and whether or not a worker is up: the broker keeps it, and tells each worker. A task that
    runs already is left to end, unless you say --terminate. Whether there is such a task is not checked.
    """
    for task_id in task_ids:
        app.revoke(task_id, terminate)
    if as_json:
        print_json({"revoked": task_ids, "terminate": terminate})
    else:
        for task_id in task_ids:
            click.echo(f"revoked: {task_id}")


@click.command()
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@json_option
@with_app(*BROKER_SETTINGS)
def pause(app: TaskQ, queues: tuple[str, ...], as_json: bool) -> None:
    """Have workers fetch nothing from QUEUE, until 'taskq resume'.

    \b
    Examples:
      taskq pause -A shop.app:app mail
      taskq pause mail reports

    Calls are accepted as ever and wait; tasks that run are left to end. It outlives restarts of workers and of the broker.
    """
    _warn_of_misspelt(app, queues)
    for queue in queues:
        app.pause(queue)
    _print("paused", queues, as_json)


@click.command()
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@json_option
@with_app(*BROKER_SETTINGS)
def resume(app: TaskQ, queues: tuple[str, ...], as_json: bool) -> None:
    """Have workers fetch from QUEUE again.

    \b
    Examples:
      taskq resume -A shop.app:app mail
      taskq resume mail reports
    """
    _warn_of_misspelt(app, queues)
    for queue in queues:
        app.resume(queue)
    _print("resumed", queues, as_json)


def _warn_of_misspelt(app: TaskQ, queues: tuple[str, ...]) -> None:
    for queue in queues:
        if app.publisher.depth(queue) is None:
            click.echo(f"Warning: there is no queue {queue!r} on {masked(app.settings.broker)} yet", err=True)


def _print(what: str, queues: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json({what: queues})
    else:
        for queue in queues:
            click.echo(f"{what}: {queue}")
