"""What the commands that talk to workers share: whom they mean, how long they wait, and how they show what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from taskq import TaskQ
from taskq.broker.pidbox import EVERY_WORKER, Caller
from taskq.cli.options import UNNAMED, Command, Seconds, printable
from taskq.config import masked
from taskq.errors import BrokerError


def with_workers(command: Command) -> Command:
    """Give a command the options that say which workers are meant (``nodes``), and how long they have to answer."""
    about = "Seconds that workers have to answer."
    wait = click.option("-t", "--timeout", type=Seconds(above=0.0), default=1.0, show_default=True, help=about)
    whom = click.option(
        "-d", "--destination", "nodes", multiple=True, metavar="WORKER", help="This worker only; may be given several times."
    )
    return whom(wait(command))


def ask(
    caller: Caller, app: TaskQ, method: str, arguments: Mapping[str, Any], nodes: tuple[str, ...], timeout: float
) -> dict[str, Any]:
    """What the workers answer that are meant: these, or all of the app's, or, where no app is named, all."""
    given = {**arguments, "app": app.name} if app.name != UNNAMED and not nodes else dict(arguments)
    answers = caller.ask(method, given, nodes=nodes, pattern="" if nodes else EVERY_WORKER, timeout=timeout)
    return dict(sorted(answers.items()))


def nobody(app: TaskQ, nodes: tuple[str, ...], timeout: float) -> BrokerError:
    """What to say where no worker has answered."""
    who = f"of {app.name} " if app.name != UNNAMED else ""
    who = f"{who}answers" if not nodes else f"called {' or '.join(nodes)} answers"
    return BrokerError(f"no worker {who} on {masked(app.settings.broker)} within {timeout:g} s")


def refused(answer: Any) -> str | None:
    """Why a worker did not obey; None where it did."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return None if error is None else printable(str(error))


def span(seconds: float) -> str:
    """A length of time for people: 0.35s, 12s, 3m 5s, 2h 10m, 4d 3h."""
    if seconds < 10.0:
        return f"{seconds:.2f}s".replace(".00", "")
    whole = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if whole >= size or parts:
            parts.append(f"{whole // size}{unit}")
            whole %= size
    return " ".join(parts[:2])
