"""Tables in the documentation that are made of the code when the site is built: settings and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from taskq.cli.main import cli
from taskq.config import ABOUT, DEFAULTS


def settings() -> str:
    """Every setting: its default and what it means."""
    rows = (f"| `{name}` | {_default(DEFAULTS[name])} | {_cell(about)} |" for name, about in ABOUT.items())
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def commands() -> str:
    """Every command, as ``--help`` shows it."""
    return "\n\n".join(_sections(cli, click.Context(cli, info_name="taskq", max_content_width=100)))


TABLES: Mapping[str, Callable[[], str]] = {"<!-- settings -->": settings, "<!-- commands -->": commands}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    for mark, table in TABLES.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"### `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if (inner := command.get_command(context, name)) is not None:
                yield from _sections(inner, click.Context(inner, info_name=name, parent=context, max_content_width=100))


def _default(value: Any) -> str:
    return f"`{value}`" if value not in ("", None) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
