"""The caller's handle on a result that may not be there yet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from taskq.errors import ResultTimeout, TaskExpired, TaskFailed, TaskRevoked
from taskq.results.store import Record, ResultStore, Status
from taskq.serialization import decode

R = TypeVar("R")


class AsyncResult(Generic[R]):
    """The end of one task, whenever it comes. Names are Celery's."""

    def __init__(self, task_id: str, open_store: Callable[[], ResultStore], revoke: Callable[[str, bool], None]) -> None:
        self.id = task_id
        self._open_store = open_store
        self._revoke = revoke
        self._record: Record | None = None

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def status(self) -> Status:
        """SUCCESS, FAILURE, REVOKED or IGNORED; until then PENDING. Raises ``ResultsDisabled``.

        STARTED is only told of a task that must not run twice: it is running, or it is lost.
        """
        record = self._fetch()
        return record.status if record else "PENDING"

    def ready(self) -> bool:
        """Whether the task has ended."""
        record = self._fetch()
        return record is not None and record.is_end

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the task has ended, or ``timeout`` seconds; returns whether it has."""
        if self._record is None:
            self._record = self._open_store().wait(self.id, timeout)
        return self._record is not None

    def get(self, timeout: float | None = None) -> R:
        """The task's return value, as soon as there is one.

        None for a task that raised ``Ignore``. Raises what the task raised (its own type where this process has imported it,
        else ``TaskFailed``), what became of it (``DeadLettered``, ``TimeLimitExceeded``, ``WorkerLost``, ``TaskRevoked`` or
        ``TaskExpired``: all of them ``TaskFailed``) and ``ResultTimeout`` after ``timeout`` seconds.
        """
        if not self.wait(timeout):
            raise ResultTimeout(f"task {self.id} has not ended within {timeout} s; it may still end")
        meta = self.meta()
        if meta["status"] == "SUCCESS":
            return cast(R, meta["result"])
        if meta["status"] == "IGNORED":
            return cast(R, None)
        raise rebuilt(meta)

    def revoke(self, terminate: bool = False) -> None:
        """Have the task not run any more; with ``terminate``, end it where it runs. See ``TaskQ.revoke``."""
        self._revoke(self.id, terminate)

    @property
    def traceback(self) -> str | None:
        """The remote traceback of a task that failed, as text."""
        record = self._fetch()
        return decode(record.meta).get("traceback") if record else None

    def meta(self) -> dict[str, Any]:
        """The whole record in Celery's format: status, result, traceback, date_done, task_id and the like."""
        record = self._fetch()
        if record is None:
            return {"task_id": self.id, "status": "PENDING", "result": None, "traceback": None}
        return cast(dict[str, Any], decode(record.meta))

    def _fetch(self) -> Record | None:
        if self._record is not None:
            return self._record
        record = self._open_store().fetch(self.id)
        if record is not None and record.is_end:
            self._record = record
        return record


def rebuilt(meta: dict[str, Any]) -> BaseException:
    """The exception that a failed task raised, or a ``TaskFailed`` that tells of it or of what became of the task.

    Only classes of modules that this process has already imported are used: a result must not make us import anything.
    """
    described = meta.get("result")
    if not isinstance(described, dict):
        return TaskFailed(str(meta.get("status")), str(described), meta.get("traceback"))
    name, args = str(described.get("exc_type")), described.get("exc_message") or []
    args = args if isinstance(args, list) else [args]
    text = ", ".join(map(str, args))
    if meta.get("status") == "REVOKED":
        # Written as Celery does, whose one class serves for both.
        end = TaskExpired if text.startswith("expired") else TaskRevoked
        return end(end.__name__, text, meta.get("traceback"))
    failed = TaskFailed(name, text, meta.get("traceback"))
    kind = getattr(sys.modules.get(str(described.get("exc_module"))), name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return failed
    if issubclass(kind, TaskFailed):
        return kind(name, text, meta.get("traceback"))
    try:
        error = kind(*args)
    except Exception:  # noqa: BLE001  # the class is the application's, so anything may go wrong in it; the description is the answer then
        return failed
    error.__cause__ = failed
    if failed.traceback:
        error.add_note(f"in the worker:\n{failed.traceback}")
    return error
