"""``taskq schedule`` and ``taskq scheduler``: what an application has sent again and again."""

from __future__ import annotations

import difflib
import sys
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import click

from taskq import TaskQ
from taskq.cli.loading import load_app
from taskq.cli.options import BROKER_SETTINGS, app_option, json_option, print_json, print_table, with_app, with_settings
from taskq.errors import UnsupportedFeature
from taskq.schedule import Schedule


@click.group()
def schedule() -> None:
    """See when the schedules of an application are due, and send one now.

    \b
    Examples:
      taskq schedule list -A shop.app:app
      taskq schedule next -A shop.app:app nightly --count 10
      taskq schedule run -A shop.app:app nightly
    """


@schedule.command("list")
@json_option
@with_app("backend", *BROKER_SETTINGS)
def list_(app: TaskQ, as_json: bool) -> None:
    """List the app's schedules: when each was last sent, when it is due next, and what happens to ticks that were missed.

    \b
    Examples:
      taskq schedule list -A shop.app:app
      taskq schedule list -A shop.app:app --json

    Times are those of the schedule's zone. A schedule that was never sent shows as '-'.
    """
    now, sent = datetime.now(UTC), app.last_sent()
    rows = [_row(each, sent.get(each.name), now) for each in app.schedules.values()]
    if as_json:
        print_json(rows)
    else:
        print_table(tuple(_HEADER), [tuple(_cell(row[name]) for name in _HEADER) for row in rows])


_HEADER = ("name", "entry", "timezone", "last", "next", "misfire", "overlap", "jitter", "task")


def _row(schedule: Schedule, last: datetime | None, now: datetime) -> dict[str, Any]:
    zone = ZoneInfo(schedule.timezone)
    return {
        "name": schedule.name,
        "entry": str(schedule.entry),
        "timezone": schedule.timezone,
        "last": None if last is None else last.astimezone(zone),
        "next": schedule.next_after(now).astimezone(zone),
        "misfire": schedule.misfire,
        "overlap": schedule.overlap,
        "jitter": schedule.jitter,
        "task": schedule.step.task,
    }


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            return value.isoformat(" ", "seconds")
        case float():
            return f"{value:g} s" if value else "-"
    return str(value)


@schedule.command("next")
@click.argument("name")
@click.option("--count", "-n", type=click.IntRange(1, 10_000), default=5, show_default=True, help="How many.")
@json_option
@with_app()
def next_(app: TaskQ, name: str, count: int, as_json: bool) -> None:
    """Print the next moments at which the schedule NAME is due, in its zone and in UTC.

    \b
    Examples:
      taskq schedule next -A shop.app:app nightly
      taskq schedule next -A shop.app:app nightly --count 100 --json
    """
    found = _named(app, name)
    zone, moment, ticks = ZoneInfo(found.timezone), datetime.now(UTC), []
    for _ in range(count):
        moment = found.next_after(moment)
        ticks.append(moment)
    if as_json:
        print_json([{"local": tick.astimezone(zone), "utc": tick} for tick in ticks])
    else:
        print_table((found.timezone, "UTC"), [(_cell(tick.astimezone(zone)), _cell(tick)) for tick in ticks])


@schedule.command()
@click.argument("name")
@json_option
@with_app("backend", *BROKER_SETTINGS, "max_message_bytes")
def run(app: TaskQ, name: str, as_json: bool) -> None:
    """Send the call of the schedule NAME once, now; prints its id. The schedule itself goes on as if nothing had been.

    \b
    Examples:
      taskq schedule run -A shop.app:app nightly
    """
    result = app.send_scheduled(_named(app, name).name)
    if as_json:
        print_json({"id": result.id, "schedule": name})
    else:
        click.echo(result.id)


def _named(app: TaskQ, name: str) -> Schedule:
    if name not in app.schedules:
        near = difflib.get_close_matches(name, app.schedules, n=1)
        known = ", ".join(app.schedules) or "none"
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}"
        raise click.UsageError(f"{app.name} has no schedule {name!r}; {hint}")
    return app.schedules[name]


@click.command()
@app_option(required=True)
@with_settings("log_level", "log_format", "backend", *BROKER_SETTINGS, "result_ttl", "http")
def scheduler(app_spec: str, settings: dict[str, Any]) -> None:
    """See to the schedules of an application until SIGTERM or SIGINT, without running tasks.

    \b
    Examples:
      taskq scheduler -A shop.app:app

    Workers do this too, unless they are told --no-scheduler. However many run: one of them leads, and each tick is sent once.
    With --http, /livez, /readyz and /metrics say how this process is.
    """
    if sys.platform == "win32":
        raise UnsupportedFeature("taskq scheduler needs Linux or macOS; sending works on Windows")
    from taskq.workers.worker import run_scheduler

    app = load_app(app_spec)
    app.configure(settings)
    sys.exit(run_scheduler(app))
