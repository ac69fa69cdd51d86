"""``taskq send``: a call by name, from the shell."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

import click

from taskq import TaskQ
from taskq.cli.options import BROKER_SETTINGS, Seconds, json_option, print_json, with_app
from taskq.cli.result import print_end, wait_for
from taskq.errors import MessageError
from taskq.serialization import decode


def _json(kind: type, right: str) -> Callable[[click.Context, click.Parameter, str], Any]:
    """A parser of JSON text that stands for a value of this kind."""

    def parse(_ctx: click.Context, _param: click.Parameter, text: str) -> Any:
        try:
            json.loads(text)  # for its errors, which say where
            value = decode(text.encode())
        except (ValueError, RecursionError, MessageError) as error:
            raise click.BadParameter(f"{text!r} is not JSON: {error}; write {right}") from None
        if not isinstance(value, kind):
            raise click.BadParameter(f"{text!r} is JSON of another kind; write {right}")
        return value

    return parse


@click.command()
@click.argument("name")
@click.option(
    "--args",
    callback=_json(list, """a list such as '[1, "two"]'"""),
    default="[]",
    metavar="JSON",
    help="Positional arguments, a JSON list.",
)
@click.option(
    "--kwargs",
    callback=_json(dict, """an object such as '{"to": "ann"}'"""),
    default="{}",
    metavar="JSON",
    help="Keyword arguments, a JSON object.",
)
@click.option("-q", "--queue", help="The queue; by default the task's own, or else the default queue.")
@click.option("--countdown", type=Seconds(), help="Run after so many seconds.")
@click.option("--expires", type=Seconds(), help="Do not run after so many seconds.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, 9 first.")
@click.option("--task-id", help="The id of the task; made up by default.")
@click.option("--wait", is_flag=True, help="Wait until the task has ended, and print its result.")
@click.option("--timeout", type=Seconds(), help="With --wait: wait at most so many seconds.")
@json_option
@with_app(*BROKER_SETTINGS, "backend", "max_message_bytes")
def send(
    app: TaskQ,
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Send a call of the task NAME; prints its id once the broker has taken responsibility for it.

    \b
    Examples:
      taskq send -A shop.app:app shop.app.send_mail --args '["ann@example.org", "hi"]'
      taskq send -A shop.app:app shop.app.add --kwargs '{"a": 1, "b": 2}' --wait --timeout 10

    With -A, the task's own queue and options apply and its arguments are checked. With --wait, the exit code is 1 if the task
    failed or has not ended in time.
    """
    if task := app.tasks.get(name):
        try:
            task.si(*args, **kwargs)
        except TypeError as error:
            raise click.UsageError(str(error)) from error
    elif app.tasks:
        near = difflib.get_close_matches(name, app.tasks, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        click.echo(f"Warning: sent although {app.name} has no task {name!r}{hint}", err=True)
    result = app.send_task(name, args, kwargs, **options)
    if wait:
        wait_for(result, timeout)
        print_end(result, as_json)
    elif as_json:
        print_json({"id": result.id, "task": name})
    else:
        click.echo(result.id)
