"""The tasks that every worker knows: those that ``Task.map``, ``starmap`` and ``chunks`` send, under Celery's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from taskq.errors import TaskqError
from taskq.step import step_of
from taskq.task import Task


def builtins(tasks: Mapping[str, Task[..., Any]]) -> dict[str, Task[..., Any]]:
    """The tasks by name; they call those in ``tasks``."""

    def called(step: Any) -> Callable[..., Any]:
        name = step_of(step).task
        if name not in tasks:
            raise TaskqError(f"this worker does not know task {name!r}, which was to be called with each item")
        return tasks[name]

    def xmap(task: Any, it: list[Any]) -> list[Any]:
        function = called(task)
        return [function(item) for item in it]

    def xstarmap(task: Any, it: list[Any]) -> list[Any]:
        function = called(task)
        return [function(*item) for item in it]

    return {name: Task(function, {"name": name}) for name, function in (("celery.map", xmap), ("celery.starmap", xstarmap))}
