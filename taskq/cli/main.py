"""The command group, and the border where errors become one line on standard error.

Exit codes: 0 done, 1 what was asked for could not be had, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from taskq.config import masked
from taskq.errors import TaskqError

INTERRUPTED: Final = 130

#: Each command with its module, imported only when it is called so that every other command starts fast.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "demo": ("taskq.cli.demo", "See it at work: kills everywhere, nothing lost."),
    "worker": ("taskq.cli.worker", "Run the tasks of an application."),
    "status": ("taskq.cli.status", "Show the workers, what each of them runs, and the queues."),
    "ps": ("taskq.cli.status", "List the tasks that run now."),
    "inspect": ("taskq.cli.inspect", "Ask workers what they know."),
    "scale": ("taskq.cli.steer", "Change how many children workers have."),
    "shutdown": ("taskq.cli.steer", "Have workers end."),
    "send": ("taskq.cli.send", "Send a call of a task."),
    "result": ("taskq.cli.result", "Print how a task ended."),
    "why": ("taskq.cli.why", "Say where a task is, and what it waits for."),
    "workflow": ("taskq.cli.workflow", "Draw a workflow: what has run, what runs, and what waits."),
    "queues": ("taskq.cli.queues", "Show what waits in each queue, and who fetches from it."),
    "purge": ("taskq.cli.queues", "Delete the messages of a queue."),
    "dead": ("taskq.cli.dead", "List, show, replay and purge dead letters."),
    "revoke": ("taskq.cli.control", "Have tasks not run any more."),
    "pause": ("taskq.cli.control", "Have workers fetch nothing from a queue."),
    "resume": ("taskq.cli.control", "Have workers fetch from a queue again."),
    "schedule": ("taskq.cli.schedule", "List the schedules, when each is due, and send one now."),
    "scheduler": ("taskq.cli.schedule", "See to the schedules without running tasks."),
    "doctor": ("taskq.cli.doctor", "Find out what is wrong with a deployment, and what mends it."),
    "config": ("taskq.cli.config", "Show each setting's value and where it came from."),
}


class _Commands(click.Group):
    """The commands, and the border around them: a mistake of the user's gets a message, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for text in args:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise click.UsageError(f"{text!r} is not UTF-8") from None
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # What could not be written would fail once more at the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"Error: {error}; the output is not complete", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TaskqError as error:
            raise click.ClickException(masked(str(error))) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="taskq-core", message="%(prog)s %(version)s")
def cli() -> None:
    """Background tasks that survive crashes.

    \b
    Examples:
      taskq demo
      taskq worker -A shop.app:app
      taskq send -A shop.app:app shop.app.add --args '[1, 2]' --wait

    Without -A, a command works on the broker that TASKQ_BROKER names, or else on the SQLite file in your state directory.
    Every setting has one name: max_crashes in TaskQ(...), TASKQ_MAX_CRASHES in the environment, --max-crashes here.
    """
