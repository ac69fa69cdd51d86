"""Options that commands share: the app, ``--json``, and the settings, made from ``taskq.config`` so that each has one name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Final, get_args, get_type_hints

import click

from taskq import TaskQ
from taskq.cli.loading import load_app
from taskq.config import ABOUT, DEFAULTS, Settings

#: The settings that matter to whoever talks to the broker without running tasks.
BROKER_SETTINGS: Final = ("broker", "default_queue", "queue_type", "queue_max_priority", "delivery_limit", "publish_timeout")

_SHORT: Final = {"broker": "-b", "concurrency": "-c", "log_level": "-l", "queues": "-Q"}
_TYPES: Final = get_type_hints(Settings)

Command = Callable[..., None]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these settings; it receives those that were given as the dict ``settings``."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(settings={name: value for name, value in given.items() if value not in (None, ())}, **values)

        decorated: Command = collect
        for name in reversed(names):  # click shows the option that is added last first
            decorated = _setting_option(name)(decorated)
        return decorated

    return decorate


def with_app(*names: str) -> Callable[[Command], Command]:
    """Give a command -A and an option for each of these settings; it receives the app they make as ``app``."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def load(app_spec: str | None, settings: dict[str, Any], **values: Any) -> None:
            app = load_app(app_spec) if app_spec else TaskQ("taskq")
            app.configure(settings)
            try:
                command(app=app, **values)
            finally:
                app.close()

        return app_option(required=False)(with_settings(*names)(load))

    return decorate


def app_option(*, required: bool) -> Callable[[Command], Command]:
    """The option -A."""
    return click.option(
        "-A",
        "--app",
        "app_spec",
        envvar="TASKQ_APP",
        show_envvar=True,
        required=required,
        metavar="MODULE:ATTRIBUTE",
        help="Where the application's TaskQ is; the attribute is 'app' if left out.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print a value as JSON; dates and the like as text."""
    click.echo(as_text(value, indent=2))


def as_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON text for people and scripts; dates and the like become plain text."""
    return json.dumps(value, indent=indent, default=_as_plain, ensure_ascii=False)


def _as_plain(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns, wide enough for their longest cells."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _setting_option(name: str) -> Callable[[Command], Command]:
    kind = _TYPES[name]
    choices = get_args(kind)
    default = str(DEFAULTS[name] or "").removesuffix(".0")
    return click.option(
        *([_SHORT[name]] if name in _SHORT else []),
        f"--{name.replace('_', '-')}",
        name,
        type=click.Choice(choices) if choices else kind,
        multiple=name == "queues",
        help=f"{ABOUT[name]}{default and f'  [default: {default}]'}",
    )
