"""``taskq inspect``: Celery's questions to workers, with the answers that Celery's tools get."""

from __future__ import annotations

import textwrap
from typing import Any, Final

import click

from taskq import TaskQ
from taskq.broker import open_caller
from taskq.cli.options import BROKER_SETTINGS, as_text, json_option, print_json, with_app
from taskq.cli.workers import ask, nobody, with_workers

QUESTIONS: Final = ("ping", "stats", "active", "reserved", "registered", "revoked", "active_queues", "conf", "report")


@click.command()
@click.argument("question", type=click.Choice(QUESTIONS))
@json_option
@with_workers
@with_app(*BROKER_SETTINGS)
def inspect(app: TaskQ, question: str, as_json: bool, nodes: tuple[str, ...], timeout: float) -> None:
    """Ask the workers QUESTION, and print what each answers.

    \b
    Examples:
      taskq inspect ping -A shop.app:app
      taskq inspect active --json
      taskq inspect conf -d taskq@web1-4711-3f9a

    The answers have Celery's form, as 'celery inspect' shows them. Arguments of tasks are shown where the workers' setting
    show_arguments says so. Exits with 1 if no worker answers.
    """
    with open_caller(app.settings) as caller:
        answers = ask(caller, app, question, {"with_defaults": True} if question == "conf" else {}, nodes, timeout)
    if not answers:
        raise nobody(app, nodes, timeout)
    if as_json:
        print_json(answers)
        return
    for node, answer in answers.items():
        click.echo(f"{node}:\n{textwrap.indent(_shown(answer), '    ')}")


def _shown(answer: Any) -> str:
    match answer:
        case {"ok": str() as text} | {"error": str() as text}:
            return text
        case []:
            return "none"
        case [*lines] if all(isinstance(line, str) for line in lines):
            return "\n".join(lines)
    return as_text(answer, indent=2)
