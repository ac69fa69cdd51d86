"""``taskq dead``: what is in the dead-letter queues, and what becomes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import click

from taskq import TaskQ
from taskq.cli import portrait
from taskq.cli.options import BROKER_SETTINGS, json_option, print_json, print_json_array, print_table, with_app
from taskq.cli.since import since as moment
from taskq.config import masked
from taskq.dead import REASONS, DeadLetter, Selection
from taskq.errors import BrokerError
from taskq.message import dead_letter_queue


class Letters:
    """The letters that a command line means: those of some queues, or of all of the app's, that pass its filters."""

    def __init__(self, app: TaskQ, names: tuple[str, ...], selection: Selection) -> None:
        self.app = app
        self.where = masked(app.settings.broker)
        self._selection = selection
        self._queues: tuple[str | None, ...] = names or (None,)
        for name in names:
            queue = dead_letter_queue(name.removesuffix(dead_letter_queue("")))
            if app.publisher.depth(queue) is None:
                raise BrokerError(f"there is no queue {queue!r} on {self.where}; 'taskq queues' shows which there are")

    def __iter__(self) -> Iterator[DeadLetter]:
        found = False
        for queue in self._queues:
            for letter in self.app.dead_letters(queue, **self._selection):
                found = True
                yield letter
        self._check(found)

    def total(self, deal: Callable[..., int], **options: Any) -> int:
        """Replay or purge them; returns how many."""
        total = 0
        for queue in self._queues:
            try:
                total += deal(queue, **options, **self._selection)
            except BrokerError as error:
                if done := total + len(error.confirmed):
                    raise BrokerError(f"{error}; that was after {done} dead letters: run it again for the rest") from error
                raise
        self._check(total > 0)
        return total

    def _check(self, found: bool) -> None:
        """Finding nothing is an error where somebody asked for certain letters."""
        ids = self._selection.get("ids")
        if ids and not found:
            raise BrokerError(
                f"no dead letter of {', '.join(ids)} on {self.where}, in the queues and with the other filters given; "
                "'taskq dead list' shows which there are"
            )


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the queues, the filters and the app's options; it receives the ``letters`` that they mean."""

    @functools.wraps(command)
    def select(
        app: TaskQ,
        names: tuple[str, ...],
        task: str | None,
        reason: str | None,
        since: datetime | None,
        ids: tuple[str, ...],
        **values: Any,
    ) -> None:
        selection = Selection(task=task, reason=reason, since=since, ids=ids or None)
        command(letters=Letters(app, names, selection), **values)

    decorated: Callable[..., None] = with_app(*BROKER_SETTINGS)(select)
    for option in (
        click.option("--id", "ids", multiple=True, metavar="ID", help="Those of this task; give it again for more."),
        click.option(
            "--since", callback=moment, metavar="MOMENT", help="Those dead since 2026-11-22T08:00, or 15m, 2h, 3d ago."
        ),
        click.option("--reason", metavar="TEXT", help=f"Those dead for this reason: {', '.join(REASONS)}."),
        click.option("--task", metavar="NAME", help="Those of the task of this name."),
        click.argument("names", metavar="[QUEUE]...", nargs=-1),
    ):
        decorated = option(decorated)
    return decorated


@click.group()
def dead() -> None:
    """List, show, replay and purge dead letters: messages that no worker will run any more.

    \b
    Examples:
      taskq dead list -A shop.app:app
      taskq dead replay mail --reason crashed --since 2h --rate 10

    Without QUEUE, each command deals with every queue that the app's tasks and settings name. Where several filters are given,
    a letter must pass them all.
    """


@dead.command(name="list")
@json_option
@selecting
def list_letters(letters: Letters, as_json: bool) -> None:
    """List the dead letters of QUEUE, oldest first.

    \b
    Examples:
      taskq dead list -A shop.app:app
      taskq dead list mail --reason 'time limit' --since 2026-11-22T08:00 --json
    """
    if as_json:
        print_json_array(map(portrait.summary, letters))
    else:
        print_table(portrait.COLUMNS, map(portrait.row, letters))


@dead.command(short_help="Show all about the dead letters of QUEUE.")
@json_option
@selecting
def show(letters: Letters, as_json: bool) -> None:
    """Show all about the dead letters of QUEUE: counters, arguments, headers, traceback.

    \b
    Examples:
      taskq dead show -A shop.app:app --id 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
      taskq dead show mail --task shop.app.send_mail --since 15m
    """
    if as_json:
        print_json_array(map(portrait.document, letters))
        return
    for number, letter in enumerate(letters):
        click.echo("\n" * (number > 0) + portrait.page(letter))


@dead.command(short_help="Send the dead letters of QUEUE again.")
@click.option("--rate", type=float, help="Send at most so many a second.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@json_option
@selecting
def replay(letters: Letters, rate: float | None, dry_run: bool, as_json: bool) -> None:
    """Send the dead letters of QUEUE to their queues again, with their counters at the start.

    \b
    Examples:
      taskq dead replay -A shop.app:app --id 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
      taskq dead replay mail --reason crashed --since 2h --dry-run
      taskq dead replay mail --reason crashed --since 2h --rate 10

    A letter is deleted once the broker has confirmed its copy: interrupt it whenever you like, and run it again for the rest.
    """
    if rate is not None and not 0 < rate < float("inf"):
        raise click.BadParameter(f"{rate:g} is not a number above 0", param_hint="'--rate'")
    total = letters.total(letters.app.replay, rate=rate, dry_run=dry_run)
    _print_total("replayed", "sent again", total, dry_run, as_json)


@dead.command()
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@selecting
def purge(letters: Letters, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete the dead letters of QUEUE for good.

    \b
    Examples:
      taskq dead purge -A shop.app:app mail --dry-run
      taskq dead purge mail --reason 'unknown task' --yes
    """
    deal = letters.app.purge_dead
    if not (yes or dry_run):
        found = letters.total(deal, dry_run=True)
        click.confirm(f"Delete the dead letters ({found}) on {letters.where} for good?", abort=True, err=True)
    _print_total("purged", "deleted", letters.total(deal, dry_run=dry_run), dry_run, as_json)


def _print_total(key: str, what: str, total: int, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({key: total, "dry_run": dry_run})
    else:
        click.echo(f"dead letters that would be {what}: {total}" if dry_run else f"dead letters {what}: {total}")
