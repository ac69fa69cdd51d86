"""A moment on the command line: ISO 8601, or how long ago it was."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def since(_ctx: click.Context, _param: click.Parameter, text: str | None) -> datetime | None:
    """The moment that an option names: ``2026-11-22T08:00``, local unless it names a zone; ``15m``, ``2h``, ``3d`` ago."""
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no moment; write 2026-11-22T08:00, or 15m, 2h or 3d for as long ago as that"
        ) from None
