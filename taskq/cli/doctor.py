"""``taskq doctor``: what is wrong with a deployment, and what mends it."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import click
import msgspec

from taskq.cli.options import app_option, json_option, print_json_array, printable, with_settings
from taskq.config import NAMES, masked
from taskq.doctor import examine
from taskq.doctor.finding import Finding, Level
from taskq.doctor.patient import Patient

_COLOURS: Final[dict[Level, str]] = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command()
@app_option(required=False)
@json_option
@with_settings(*NAMES)
def doctor(app_spec: str | None, settings: dict[str, Any], as_json: bool) -> None:
    """Look at a deployment from all sides: machine, settings, application, broker, queues, workers, backend.

    \b
    Examples:
      taskq doctor -A shop.app:app
      TASKQ_BROKER=amqp://… taskq doctor --json

    Run it where the workers run, with their environment. It sends two messages through a queue of its own, which it deletes
    afterwards, and writes a document that is forgotten after a minute; on RabbitMQ it makes the queues that delays need, as the
    first delayed call would. Each finding is ok, a warning or an error. Exits with 1 if there is an error.
    """
    patient, levels = Patient(app_spec, settings), Counter[Level]()

    def counted() -> Any:
        for finding in examine(patient):
            levels[finding.level] += 1
            yield finding

    try:
        if as_json:
            print_json_array(_masked(finding) for finding in counted())
        else:
            for finding in counted():
                _print(finding)
            click.echo(f"errors: {levels['error']}, warnings: {levels['warning']}")
    finally:
        patient.close()
    if levels["error"]:
        click.get_current_context().exit(1)


def _masked(finding: Finding) -> dict[str, Any]:
    """The finding for JSON. Passwords are masked where texts are made; this is for those that others made."""
    fields = msgspec.structs.asdict(finding)
    return {name: masked(value) if isinstance(value, str) else value for name, value in fields.items()}


def _print(finding: Finding) -> None:
    first, *rest = masked(finding.text).splitlines()
    level = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
    click.echo(f"{level} {finding.check:<12} {printable(first)}")
    for line in rest:
        click.echo(f"{'':<22}{printable(line)}")
    if finding.mend:
        click.echo(f"{'':<22}-> {printable(masked(finding.mend))}")
