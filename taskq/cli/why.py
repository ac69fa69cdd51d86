"""``taskq why``: where a task is, and what it waits for."""

from __future__ import annotations

import click
import msgspec

from taskq import TaskQ
from taskq.cli.options import BROKER_SETTINGS, Seconds, json_option, print_json, printable, with_app
from taskq.evidence import gather
from taskq.why import explain

_TIMEOUT = "Seconds that workers have to answer."


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--queue", metavar="QUEUE", help="Where its message would be; RabbitMQ cannot look for it.")
@click.option("-t", "--timeout", type=Seconds(above=0.0), default=1.0, show_default=True, help=_TIMEOUT)
@json_option
@with_app("backend", *BROKER_SETTINGS)
def why(app: TaskQ, task_id: str, queue: str | None, timeout: float, as_json: bool) -> None:
    """Say where the task ID is, and what it waits for.

    \b
    Examples:
      taskq why -A shop.app:app 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
      taskq why 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a --queue mail --json

    \b
    finished    it has ended, well or badly
    dead        its message is among the dead letters
    revoked     it was revoked, or has expired, and does not run
    running     a worker runs it
    held        a worker has fetched it, and it has yet to begin
    delayed     its time, or that of its retry, has not come
    paused      its queue is paused
    unconsumed  no worker fetches from its queue
    waiting     others have their turn before it
    blocked     tasks before it in its workflow have not ended
    pending     it waits, if it was sent: RabbitMQ cannot look for a message
    unknown     there is no trace of it, and the exit code is 1

    The workers have --timeout seconds to say whether they have it.
    """
    facts = gather(app, task_id, queue, timeout=timeout)
    answer = explain(facts)
    if as_json:
        print_json({"id": task_id, **msgspec.structs.asdict(answer), "unasked": facts.unasked})
    else:
        click.echo(f"{answer.state}: {printable(answer.text)}")
        for line in filter(None, (answer.hint, *facts.unasked)):
            click.echo(f"  {printable(line)}")
    if answer.state == "unknown":
        click.get_current_context().exit(1)
