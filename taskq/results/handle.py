"""The caller's handle on a result that may not be there yet."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar, cast

from taskq import checks
from taskq.attempt import Past, current_attempt, past
from taskq.describe import bounded, repr_of, text_of
from taskq.errors import (
    BackendError,
    ChordError,
    MessageError,
    ResultsDisabled,
    ResultTimeout,
    TaskExpired,
    TaskFailed,
    TaskRevoked,
)
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
        #: Whether the call was sent with ``ignore_result``: there is no end to wait for.
        self.ignored = False
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
        that is part of a workflow and runs, or that must not run twice: it runs, or is lost. RETRY is told between two attempts
        of a task that raised, with its error in ``meta``, but for one that must not run twice.
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

    def wait(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until the task has ended, or ``timeout`` seconds; returns whether it has. Raises ``ResultsDisabled``.

        Raises ``ConfigurationError`` for what is no timeout: None, a number from 0, or a ``timedelta``.
        """
        seconds = checks.timeout(timeout)
        if self._record is None:
            if self.ignored and not self.ready():
                raise ResultsDisabled(f"task {self.id} was sent with ignore_result, so it leaves no result to wait for")
            if current_attempt() is not None:
                text = (
                    "a task that waits for another one holds its slot meanwhile, and for ever should none be left; use a chain"
                )
                warnings.warn(text, RuntimeWarning, stacklevel=3)
            self._record = self._source.open_store().wait(self.id, seconds)
        return self._record is not None

    def get(self, timeout: float | timedelta | None = None) -> R:
        """The task's return value, as soon as there is one.

        None for a task that raised ``Ignore``. Raises what the task raised (its own type where this process has imported it,
        else ``TaskFailed``), what became of it (``DeadLettered``, ``TimeLimitExceeded``, ``WorkerLost``, ``TaskRevoked`` or
        ``TaskExpired``: all of them ``TaskFailed``), ``ResultTimeout`` after ``timeout`` seconds, and ``ResultsDisabled`` where
        no result is kept, or none of this call.
        """
        seconds = checks.timeout(timeout)
        if not self.wait(seconds):
            raise ResultTimeout(f"task {self.id} has not ended within {seconds} s; it may still end")
        meta = self.meta()
        if meta.get("status") == "SUCCESS":
            return cast(R, meta.get("result"))
        if meta.get("status") == "IGNORED":
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
        return past(self.meta().get("attempts"))

    @property
    def traceback(self) -> str | None:
        """The remote traceback of a task that failed, as text."""
        return _text(self.meta().get("traceback"))

    def meta(self) -> dict[str, Any]:
        """The whole record in Celery's format: status, result, traceback, date_done, task_id and the like.

        Raises ``BackendError`` where somebody has written something else in its place.
        """
        record = self._fetch()
        if record is None:
            return {"task_id": self.id, "status": "PENDING", "result": None, "traceback": None}
        try:
            meta = decode(record.meta)
        except MessageError as error:
            raise BackendError(f"the result of {self.id} is no record that taskq or Celery writes: {error}") from error
        if not isinstance(meta, dict):
            raise BackendError(f"the result of {self.id} is no record that taskq or Celery writes: {repr_of(meta)}")
        return meta

    def _fetch(self) -> Record | None:
        if self._record is not None:
            return self._record
        [record] = self._source.open_store().fetch([self.id])
        if record is not None and record.is_end:
            self._record = record
        return record


def rebuilt(meta: dict[str, Any]) -> BaseException:
    """The exception that a failed task raised, or a ``TaskFailed`` that tells of it or of what became of the task.

    Its class is looked up in modules that this process has imported: a result must not make us run anything else.
    """
    described, traceback = meta.get("result"), _text(meta.get("traceback"))
    if not isinstance(described, dict):
        return TaskFailed(text_of(meta.get("status")), text_of(described), traceback)
    name, module = text_of(described.get("exc_type")), text_of(described.get("exc_module"))
    args = described.get("exc_message") or []
    args = args if isinstance(args, list) else [args]
    text = _text(described.get("exc_text"))
    told = bounded(", ".join(map(text_of, args))) if text is None else text
    if meta.get("status") == "REVOKED":
        # Written as Celery does, whose one class serves for both.
        end = TaskExpired if told.startswith("expired") else TaskRevoked
        return end(end.__name__, told, traceback)
    if (name, module) == ("ChordError", "celery.exceptions"):
        return ChordError(name, told, traceback)
    return _raised(_class_of(module, name), args, text, TaskFailed(name, told, traceback))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _raised(kind: Any, args: list[Any], text: str | None, failed: TaskFailed) -> BaseException:
    """An exception of this class, with ``failed`` as its cause; ``failed`` itself where it is no class of exceptions.

    ``text`` is what the exception read in the worker, where its arguments do not tell it.
    """
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return failed
    if issubclass(kind, TaskFailed):
        return kind(failed.exc_type, ", ".join(map(text_of, args)), failed.traceback)
    try:
        error = kind(*args)
        if not isinstance(error, Exception):
            return failed
        error.__cause__ = failed
        if text is not None and text_of(error) != text:
            error.add_note(f"it read: {text}")
        if failed.traceback:
            error.add_note(f"in the worker:\n{failed.traceback}")
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  # the class is the application's, so anything may go wrong in it; the description is the answer then
        return failed
    return error


def _class_of(module: str, name: str) -> Any:
    """What has this qualified name in a module that is imported; None if nothing has. Runs no code of the module's."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        try:
            # Not getattr: a module or a class may answer that with an import, or with anything else.
            found = vars(found)[part]
        except (KeyError, TypeError):
            return None
    return found
