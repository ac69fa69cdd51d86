"""``taskq result``: how a task ended."""

from __future__ import annotations

from typing import Any

import click

from taskq import AsyncResult, TaskQ
from taskq.cli.options import Seconds, as_text, json_option, print_json, with_app
from taskq.errors import ResultError, ResultTimeout


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until the task has ended.")
@click.option("--timeout", type=Seconds(), help="Wait at most so many seconds.")
@json_option
@with_app("broker", "backend")
def result(app: TaskQ, task_id: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Print the result of the task ID.

    \b
    Examples:
      taskq result -A shop.app:app 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a
      taskq result -A shop.app:app 1f0c3a7e-5c0b-4b0e-9b39-9c5c4f1d2b6a --wait --timeout 10 --json

    The exit code is 1 if the task failed, or if there is no result.
    """
    handle = app.result(task_id)
    if wait or timeout is not None:
        wait_for(handle, timeout)
    print_end(handle, as_json)


def wait_for(handle: AsyncResult[Any], timeout: float | None) -> None:
    """Wait for the end of the task; raises ``ResultTimeout`` after ``timeout`` seconds."""
    if not handle.wait(timeout):
        raise ResultTimeout(f"task {handle.id} has not ended within {timeout:g} s; it may still end")


def print_end(handle: AsyncResult[Any], as_json: bool) -> None:
    """Print what the task returned; raises ``ResultError`` if it has not succeeded."""
    meta = handle.meta()
    if as_json:
        print_json(meta)
    elif meta["status"] == "SUCCESS":
        click.echo(as_text(meta["result"]))
    elif meta.get("traceback"):
        click.echo(meta["traceback"].rstrip(), err=True)
    match meta["status"]:
        case "SUCCESS":
            return
        case "PENDING":
            raise ResultError(f"there is no result of task {handle.id}: it waits, runs or was never sent; --wait waits for it")
        case status:
            raise ResultError(f"task {handle.id} ended as {status}: {_reason(meta['result'])}")


def _reason(described: Any) -> str:
    """The exception of Celery's result format in words."""
    if not isinstance(described, dict):
        return str(described)
    message = described.get("exc_message")
    text = ", ".join(map(str, message)) if isinstance(message, list) else str(message or "")
    return f"{described.get('exc_type')}: {text}" if text else str(described.get("exc_type"))
