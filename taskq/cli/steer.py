"""``taskq scale`` and ``taskq shutdown``: orders to the workers that run now."""

from __future__ import annotations

from typing import Any

import click

from taskq import TaskQ
from taskq.broker import open_caller
from taskq.cli.options import BROKER_SETTINGS, json_option, print_json, with_app
from taskq.cli.workers import ask, nobody, refused, with_workers
from taskq.config import masked


@click.command()
@click.argument("count", metavar="N", type=click.IntRange(1, 1024))
@json_option
@with_workers
@with_app(*BROKER_SETTINGS)
def scale(app: TaskQ, count: int, as_json: bool, nodes: tuple[str, ...], timeout: float) -> None:
    """Have each worker keep N children. Those that are too many end once their task has.

    \b
    Examples:
      taskq scale 8 -A shop.app:app
      taskq scale 2 -d taskq@web1-4711-3f9a

    It holds until a worker ends; the setting concurrency says how many it begins with. Exits with 1 if a worker refuses, or
    none answers.
    """
    with open_caller(app.settings) as caller:
        answers = ask(caller, app, "scale", {"n": count}, nodes, timeout)
    _print(app, answers, as_json, nodes, timeout)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@with_workers
@with_app(*BROKER_SETTINGS)
def shutdown(app: TaskQ, yes: bool, as_json: bool, nodes: tuple[str, ...], timeout: float) -> None:
    """Have workers end as after SIGTERM: running tasks have their grace, the rest goes back to its queue.

    \b
    Examples:
      taskq shutdown -A shop.app:app
      taskq shutdown -d taskq@web1-4711-3f9a --yes

    What watches over a worker may start it again. Exits with 1 if none answers.
    """
    with open_caller(app.settings) as caller:
        found = ask(caller, app, "ping", {}, nodes, timeout)
    if not found:
        raise nobody(app, nodes, timeout)
    if not yes:
        click.echo("\n".join(found), err=True)
        click.confirm(f"Shut down these {len(found)} on {masked(app.settings.broker)}?", abort=True, err=True)
    with open_caller(app.settings) as caller:
        answers = ask(caller, app, "shutdown", {}, tuple(found), timeout)
    _print(app, answers, as_json, nodes, timeout)


def _print(app: TaskQ, answers: dict[str, Any], as_json: bool, nodes: tuple[str, ...], timeout: float) -> None:
    if not answers:
        raise nobody(app, nodes, timeout)
    errors = {node: error for node, answer in answers.items() if (error := refused(answer)) is not None}
    if as_json:
        print_json(answers)
    else:
        for node, answer in answers.items():
            click.echo(f"{node}: {errors.get(node) or answer.get('ok')}")
    if errors:
        click.get_current_context().exit(1)
