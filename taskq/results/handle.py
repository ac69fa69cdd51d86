"""The caller's handle on a result that may not be there yet."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar, cast

from taskq.attempt import Past, current_attempt, past
from taskq.errors import ChordError, ResultTimeout, TaskExpired, TaskFailed, TaskRevoked
from taskq.results.store import Record, ResultStore, Status
from taskq.serialization import decode

R = TypeVar("R")


class Source(NamedTuple):
    """What a handle asks: the app's result store, its revocation, and whether its broker holds a message of this task."""

    open_store: Callable[[], ResultStore]
    revoke: Callable[[str, bool], None]
    holds: Callable[[str], bool | None]


class AsyncResult(Generic[R]):
    """The end of one task, whenever it comes. Names are Celery's."""

    def __init__(self, task_id: str, source: Source) -> None:
        self.id = task_id
        #: What came before the task in its workflow: another result, or that of a group.
        self.parent: Any = None
        self._source = source
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

        UNKNOWN says that there is neither an end nor a message of this id: it was never sent, its result is over its time to
        live, or none was to be kept. Only a broker in SQLite can tell; elsewhere that is PENDING too. STARTED is told of a task
        that is part of a workflow and runs, or that must not run twice: it runs, or is lost.
        """
        record = self._fetch()
        if record is None and self._source.holds(self.id) is False:
            # Between the two looks it may have ended.
            record = self._fetch()
            return record.status if record else "UNKNOWN"
        return record.status if record else "PENDING"

    def ready(self) -> bool:
        """Whether the task has ended."""
        record = self._fetch()
        return record is not None and record.is_end

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the task has ended, or ``timeout`` seconds; returns whether it has."""
        if self._record is None:
            if current_attempt() is not None:
                text = (
                    "a task that waits for another one holds its slot meanwhile, and for ever should none be left; use a chain"
                )
                warnings.warn(text, RuntimeWarning, stacklevel=3)
            self._record = self._source.open_store().wait(self.id, timeout)
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
        self._source.revoke(self.id, terminate)

    def forget(self) -> None:
        """Delete the result."""
        self._source.open_store().forget([self.id])
        self._record = None

    def successful(self) -> bool:
        """Whether the task has ended well."""
        return self.status in ("SUCCESS", "IGNORED")

    def failed(self) -> bool:
        """Whether the task has ended badly."""
        return self.status in ("FAILURE", "REVOKED")

    @property
    def attempts(self) -> tuple[Past, ...]:
        """The attempts that the task took, oldest first, as far as they are remembered."""
        record = self._fetch()
        return past(decode(record.meta).get("attempts")) if record else ()

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
        [record] = self._source.open_store().fetch([self.id])
        if record is not None and record.is_end:
            self._record = record
        return record


def rebuilt(meta: dict[str, Any]) -> BaseException:
    """The exception that a failed task raised, or a ``TaskFailed`` that tells of it or of what became of the task.

    Its class is looked up in modules that this process has imported, and in other modules of the same packages; of any others,
    a result must not make us run anything.
    """
    described = meta.get("result")
    if not isinstance(described, dict):
        return TaskFailed(str(meta.get("status")), str(described), meta.get("traceback"))
    name, args = str(described.get("exc_type")), described.get("exc_message") or []
    args = args if isinstance(args, list) else [args]
    text, traceback = ", ".join(map(str, args)), meta.get("traceback")
    if meta.get("status") == "REVOKED":
        # Written as Celery does, whose one class serves for both.
        end = TaskExpired if text.startswith("expired") else TaskRevoked
        return end(end.__name__, text, traceback)
    if (name, described.get("exc_module")) == ("ChordError", "celery.exceptions"):
        return ChordError(name, text, traceback)
    return _raised(name, args, _module(str(described.get("exc_module"))), TaskFailed(name, text, traceback))


def _raised(name: str, args: list[Any], module: ModuleType | None, failed: TaskFailed) -> BaseException:
    """The exception of this name, with ``failed`` as its cause; ``failed`` itself where there is no such class."""
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return failed
    if issubclass(kind, TaskFailed):
        return kind(name, ", ".join(map(str, args)), failed.traceback)
    try:
        error = kind(*args)
    except Exception:  # noqa: BLE001  # the class is the application's, so anything may go wrong in it; the description is the answer then
        return failed
    error.__cause__ = failed
    if failed.traceback:
        error.add_note(f"in the worker:\n{failed.traceback}")
    return error


def _module(name: str) -> ModuleType | None:
    package = name.partition(".")[0]
    known = package in sys.modules and package not in sys.stdlib_module_names and not name.endswith("__main__")
    if name in sys.modules or not known:
        return sys.modules.get(name)
    try:
        return importlib.import_module(name)
    except Exception:  # noqa: BLE001  # the module is the application's; the description is the answer then
        return None
