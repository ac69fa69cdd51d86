"""What a result backend is: a place where the end of a task is recorded under the task's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

Status = Literal["PENDING", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "IGNORED"]


class Record(msgspec.Struct, frozen=True):
    """How a task ended, or that it has started. ``meta`` is the JSON text of Celery's result format; stores carry it undecoded.

    STARTED is no end. It is recorded for a task that must not run twice, before it runs.
    """

    id: str
    status: Status
    meta: bytes

    @property
    def is_end(self) -> bool:
        """Whether the task has ended."""
        return self.status != "STARTED"


class ResultStore(Protocol):
    """Keeps one record per task until its time to live is over (measured from the end of the task).

    A success stands until another one replaces it, anything else until the next record does: a dead letter that is replayed
    starts anew, but the late end of an attempt that was given up can't hide a success. STARTED has no time to live.
    """

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably, but for those that may not replace what stands; raises ``BrokerError`` if it can't."""

    def fetch(self, task_id: str) -> Record | None:
        """The record of this id, or None."""

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as there is one, or None after ``timeout`` seconds."""

    def expire(self) -> int:
        """Forget what is over its time to live; returns how many records went."""

    def close(self) -> None:
        """Release what the store holds open."""
