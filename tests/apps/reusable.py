"""A module of tasks that belong to no app until one includes them."""

from __future__ import annotations

from taskq import task
from tests.apps.traces import trace as imported_function


@task
def double(number: int) -> int:
    return 2 * number


@task(name="reusable.named", queue="special", priority=3)
def named() -> None:
    imported_function("named")
