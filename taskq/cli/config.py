"""``taskq config``: the effective settings."""

from __future__ import annotations

from typing import Any

import click

from taskq import TaskQ
from taskq.cli.options import json_option, print_json, print_table, with_app
from taskq.config import NAMES, masked


@click.command()
@json_option
@with_app(*NAMES)
def config(app: TaskQ, as_json: bool) -> None:
    """Show each setting's effective value and where it came from. Passwords are masked.

    \b
    Examples:
      taskq config -A shop.app:app
      TASKQ_GRACE=60 taskq config --json

    The command line wins over the environment, the environment over keywords of TaskQ(...), keywords over defaults.
    """
    values = {name: _shown(getattr(app.settings, name)) for name in NAMES}
    sources = app.settings.sources
    if as_json:
        print_json({name: {"value": values[name], "source": sources[name]} for name in NAMES})
    else:
        print_table(("setting", "value", "from"), [(name, str(values[name]), sources[name]) for name in NAMES])


def _shown(value: Any) -> Any:
    return masked(value) if isinstance(value, str) else value
