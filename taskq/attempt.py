"""An attempt: one run of a message's task, as the running task sees it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import msgspec


class Attempt(msgspec.Struct, frozen=True):
    """What a running task can know of itself; a task with ``bind=True`` receives it as its first argument.

    ``retries`` counts how often the task raised before, ``crashes`` how often the process that ran it died. ``redelivered``
    says that the broker had handed the message out before.
    """

    id: str
    task: str
    queue: str | None = None
    retries: int = 0
    crashes: int = 0
    redelivered: bool = False
    root_id: str | None = None
    parent_id: str | None = None
    headers: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def number(self) -> int:
        """Which attempt this is, from 1."""
        return 1 + self.retries + self.crashes

    @property
    def request(self) -> Attempt:
        """Itself: Celery's tasks read ``self.request.id``."""
        return self


current: ContextVar[Attempt | None] = ContextVar("taskq_attempt", default=None)


def current_attempt() -> Attempt | None:
    """The attempt that is running here, or None outside a task."""
    return current.get()
