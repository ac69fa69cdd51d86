"""What a result backend is: a place where the end of a task is recorded under the task's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

Status = Literal["PENDING", "SUCCESS", "FAILURE", "REVOKED"]


class Record(msgspec.Struct, frozen=True):
    """How a task ended. ``meta`` is the JSON text of Celery's result format; stores carry it undecoded."""

    id: str
    status: Status
    meta: bytes


class ResultStore(Protocol):
    """Keeps records until their time to live is over (measured from the end of the task)."""

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably; raises ``BrokerError`` when that cannot be promised."""

    def fetch(self, task_id: str) -> Record | None:
        """The record of this id, or None."""

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The record of this id as soon as there is one, or None after ``timeout`` seconds."""

    def expire(self) -> int:
        """Forget what is over its time to live; returns how many records went."""

    def close(self) -> None:
        """Release what the store holds open."""
