"""Options that commands share: the app, ``--json``, and the settings, made from ``taskq.config`` so that each has one name."""

from __future__ import annotations

import functools
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Final, get_args, get_type_hints

import click

from taskq import TaskQ, checks
from taskq.cli.loading import load_app
from taskq.config import ABOUT, DEFAULTS, Settings, absolute, check_alone, convert
from taskq.errors import ConfigurationError

#: The settings that matter to whoever talks to the broker without running tasks.
BROKER_SETTINGS: Final = ("broker", "default_queue", "queue_type", "queue_max_priority", "delivery_limit", "publish_timeout")

#: The name of the app that stands in where -A is not given.
UNNAMED: Final = "taskq"

#: How many rows of a table are looked at before the first one is printed.
FIRST_ROWS: Final = 1000

_SHORT: Final = {"broker": "-b", "concurrency": "-c", "log_level": "-l", "queues": "-Q"}
_TYPES: Final = get_type_hints(Settings)

Command = Callable[..., None]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these settings; it receives those that were given as the dict ``settings``."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            # Checked here, not where they arrive: on the way to a worker's processes JSON makes null of NaN.
            try:
                settings = {
                    name: convert(name, value, f"--{name.replace('_', '-')}")
                    for name, value in given.items()
                    if value not in (None, ())
                }
                check_alone(settings)
            except ConfigurationError as error:
                raise click.UsageError(str(error)) from None
            # What is relative is so to where the command was given, wherever the application's import goes.
            for name in settings.keys() & {"broker", "backend"}:
                settings[name] = absolute(name, settings[name])
            command(settings=settings, **values)

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
            app = load_app(app_spec) if app_spec else TaskQ(UNNAMED)
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


class Seconds(click.ParamType):  # type: ignore[type-arg]  # older versions of click take none
    """A number of seconds on the command line, from 0 or above ``above``."""

    name = "seconds"

    def __init__(self, above: float | None = None) -> None:
        self._above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        try:
            return checks.seconds("it", float(value), above=self._above)
        except (ValueError, ConfigurationError) as error:
            self.fail(str(error), param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print a value as JSON; dates and the like as text."""
    click.echo(as_text(value, indent=2))


def print_json_array(values: Iterable[Any]) -> None:
    """Print the values as one JSON array while they come, however many there are."""
    count = 0
    for count, value in enumerate(values, 1):
        click.echo(("[\n" if count == 1 else ",\n") + textwrap.indent(as_text(value, indent=2), "  "), nl=False)
    click.echo("\n]" if count else "[]")


def as_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON text for people and scripts; dates and the like become plain text."""
    text = json.dumps(value, indent=indent, default=_as_plain, ensure_ascii=False)
    # A lone surrogate, which no terminal can be sent, has a way of writing in ASCII.
    return text if _is_unicode(text) else json.dumps(value, indent=indent, default=_as_plain)


def printable(text: str) -> str:
    """Somebody else's text on one line of a terminal: what would move the cursor or worse is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_plain(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows in columns while they come. The longest cells of the first rows decide how wide the columns are."""
    remaining = iter(rows)
    first = [header, *itertools.islice(remaining, FIRST_ROWS)]
    widths = [max(map(len, column)) for column in zip(*first, strict=True)]
    for row in itertools.chain(first, remaining):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _setting_option(name: str) -> Callable[[Command], Command]:
    kind = _TYPES[name]
    if kind is bool:
        option = name.replace("_", "-")
        about = f"{ABOUT[name]}  [default: {'yes' if DEFAULTS[name] else 'no'}]"
        return click.option(f"--{option}/--no-{option}", name, default=None, help=about)
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
