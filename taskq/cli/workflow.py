"""``taskq workflow``: look at workflows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from taskq import TaskQ
from taskq.cli.options import json_option, print_json, with_app
from taskq.errors import ResultError
from taskq.plan import Plan
from taskq.results.store import Record

_LOOKS = {
    "SUCCESS": ("✓", "green"),
    "FAILURE": ("✗", "red"),
    "REVOKED": ("⊘", "yellow"),
    "STARTED": ("▶", "cyan"),
    "RETRY": ("↻", "yellow"),
}
_LOOKS["IGNORED"] = _LOOKS["SUCCESS"]
_WAITS = ("·", "dim")


@click.group()
def workflow() -> None:
    """Look at chains, groups and chords.

    \b
    Examples:
      taskq workflow show -A shop.app:app 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
    """


@workflow.command()
@click.argument("task_id", metavar="ID")
@json_option
@with_app("broker", "backend")
def show(app: TaskQ, task_id: str, as_json: bool) -> None:
    """Draw the workflow ID: what has run, what runs, and what waits.

    \b
    Examples:
      taskq workflow show -A shop.app:app 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
      taskq workflow show 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a --json

    ID is that of its result, of its first task or group, or of any task of it that has begun.
    """
    plan, records = app.workflow(task_id)
    if plan is None:
        raise ResultError(f"no workflow of {task_id} is known: it is none, was not sent by taskq, or was sent too long ago")
    states = {record.id: _state(record) for record in records}
    if as_json:
        print_json(_described(plan, states))
    else:
        Console(highlight=False).print(_drawn(plan, states))


def _state(record: Record) -> dict[str, Any]:
    meta = record.described()
    state: dict[str, Any] = {"status": record.status}
    if record.status == "STARTED":
        about = meta["result"]
        return {**state, "worker": about.get("worker"), "seconds": round(time.time() - about.get("started", time.time()), 3)}
    if attempts := meta.get("attempts"):
        state |= {"worker": attempts[-1].get("worker"), "seconds": attempts[-1].get("seconds"), "attempts": len(attempts)}
    if isinstance(described := meta.get("result"), dict) and "exc_type" in described:
        state["error"] = f"{described['exc_type']}: {', '.join(map(str, described.get('exc_message') or []))}"
    return state


def _described(plan: Plan, states: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if plan.kind is None:
        return {"task": plan.task, "id": plan.id, **states.get(str(plan.id), {"status": "PENDING"})}
    return {"kind": plan.kind, "id": plan.id, "steps": [_described(step, states) for step in plan.steps]}


def _drawn(plan: Plan, states: Mapping[str, dict[str, Any]], role: str = "") -> Tree:
    tree = Tree(_label(plan, states, role), guide_style="dim")
    for number, step in enumerate(plan.steps, 1):
        is_body = plan.kind == "chord" and number == len(plan.steps)
        tree.children.append(_drawn(step, states, "body: " if is_body else f"{number}. " if plan.kind == "chain" else ""))
    return tree


def _label(plan: Plan, states: Mapping[str, dict[str, Any]], role: str) -> Text:
    if plan.kind is not None:
        done = sum(states.get(str(task.id), {}).get("status") in ("SUCCESS", "IGNORED") for task in plan.tasks())
        return Text(f"{role}{plan.kind}, {done} of {sum(1 for _ in plan.tasks())} tasks done")
    state = states.get(str(plan.id), {})
    sign, style = _LOOKS.get(state.get("status", ""), _WAITS)
    text = Text(f"{sign} {role}{plan.task}", style)
    text.append(f"  {plan.id}", "dim")
    if (seconds := state.get("seconds")) is not None:
        text.append(f"  {'for ' if state['status'] == 'STARTED' else ''}{seconds:.3g} s on {state.get('worker')}", "dim")
    if error := state.get("error"):
        text.append(f"  {error}", "red")
    return text
