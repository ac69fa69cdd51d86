"""Logging of the worker's processes: one line per event on standard error, console or JSON.

Owns the form of taskq's own lines, and that an application's lines say which task they belong to. Does not own the
application's logging configuration: no handler, level, filter, formatter or factory of its ``logging`` or ``structlog``
is replaced. In a process that never calls ``configure`` (an application that sends tasks), taskq's loggers are those of
``logging`` under the same name, and structlog isn't even imported.

An event is a past-tense constant (``task_succeeded``), its data are keys. Passwords in URLs are masked in every line that is
written here.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from taskq.config import masked
from taskq.describe import traceback_of
from taskq.output import STANDARD_ERROR, Output

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]

# structlog.contextvars reads every context variable whose name begins with "structlog_", so these show up in its
# lines. Its bind_contextvars does the same at ten times the cost, and it would import structlog into processes that
# have no use for it.
_TASK_ID: ContextVar[Any] = ContextVar("structlog_task_id")
_TASK: ContextVar[Any] = ContextVar("structlog_task")
_ATTEMPT: ContextVar[Any] = ContextVar("structlog_attempt")
_CONTEXT = (("task_id", _TASK_ID), ("task", _TASK), ("attempt", _ATTEMPT))


def bind_task(task_id: str, task: str, attempt: int) -> None:
    """Make every line of this context (thread or asyncio task) carry these three."""
    _TASK_ID.set(task_id)
    _TASK.set(task)
    _ATTEMPT.set(attempt)


def unbind_task() -> None:
    """Undo ``bind_task``."""
    # Ellipsis is structlog's mark for a variable that is not set; a token would have to be passed around for a reset.
    _TASK_ID.set(...)
    _TASK.set(...)
    _ATTEMPT.set(...)


class _Bound(Protocol):
    """What a logger's lines go to."""

    def debug(self, event: str, **fields: Any) -> None: ...
    def info(self, event: str, **fields: Any) -> None: ...
    def warning(self, event: str, **fields: Any) -> None: ...
    def error(self, event: str, **fields: Any) -> None: ...


class _Standard:
    """Lines that go to ``logging``: taskq as a library inside somebody's application."""

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            exc_info = fields.pop("exc_info", None)
            pairs = "".join(f" {key}={value!r}" for key, value in {**self._fields, **fields}.items())
            self._logger.log(level, "%s", masked(event + pairs), exc_info=exc_info, stacklevel=4)

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)


class _Destination:
    """Where the lines of every taskq logger of this process go; ``configure`` changes it."""

    bind: Callable[[str, Mapping[str, Any]], _Bound] = _Standard


class Logger:
    """A named logger with bound fields. Made at import at no cost: where its lines go is looked up when one is written."""

    __slots__ = ("_bind", "_bound", "_fields", "_name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self._name = name
        self._fields = fields
        self._bind: Callable[[str, Mapping[str, Any]], _Bound] | None = None

    def bind(self, **fields: Any) -> Logger:
        """A logger whose lines carry these fields too."""
        return Logger(self._name, {**self._fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        """Log the event; ``exc_info`` may be True or an exception."""
        self._current().debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log the event; ``exc_info`` may be True or an exception."""
        self._current().info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log the event; ``exc_info`` may be True or an exception."""
        self._current().warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log the event; ``exc_info`` may be True or an exception."""
        self._current().error(event, **fields)

    def _current(self) -> _Bound:
        bind = _Destination.bind
        if bind is not self._bind:
            self._bound: _Bound = bind(self._name, self._fields)
            self._bind = bind
        return self._bound


def get_logger(name: str) -> Logger:
    """The logger of this name, usually ``get_logger(__name__)``."""
    return Logger(name, {})


def configure(format: Format, level: Level) -> None:
    """Send taskq's own lines of this process to standard error, in this form; nothing less severe than ``level``."""
    from structlog import make_filtering_bound_logger

    processors = _processors(format)
    bound_class: Any = make_filtering_bound_logger(level)

    def bind(name: str, fields: Mapping[str, Any]) -> _Bound:
        bound: _Bound = bound_class(_Lines(name), processors, dict(fields))
        return bound

    _Destination.bind = staticmethod(bind)


def configure_application(format: Format, level: Level) -> None:
    """Make the application's lines in this process say which task they belong to. Call it after the application's import.

    ``logging``: every record carries ``task_id``, ``task`` and ``attempt`` (None outside a task), unless the caller's own
    ``extra`` has them. Where the application has no handler for a record, it is written as taskq's own lines are.
    ``structlog``: if the application hasn't configured it, it writes as taskq does. If it has, the three are among
    structlog's context variables, which its ``merge_contextvars`` processor adds.
    """
    import structlog

    if not structlog.is_configured():
        structlog.configure(
            processors=_processors(format),
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=_Lines,
        )
    _extend_records()
    # Only looked at for a record that finds no handler; so it gives way as soon as the application configures one.
    logging.lastResort = _LastResort(format)


def _extend_records() -> None:
    """Add the task to every record of ``logging``."""
    make = logging.Logger.makeRecord

    # Around makeRecord rather than as a record factory: a factory adds its attributes before `extra` is looked at,
    # and makeRecord raises KeyError for an `extra` that has one of them, inside a task that logs extra={"task_id": …}.
    def make_record(self: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(self, *args, **kwargs)
        for key, variable in _CONTEXT:
            value = variable.get(None)
            record.__dict__.setdefault(key, None if value is ... else value)
        return record

    logging.Logger.makeRecord = make_record  # type: ignore[method-assign]


class _LastResort(logging.Handler):
    """Writes the records that no handler of the application takes; from WARNING on, as Python's own does."""

    def __init__(self, format: Format) -> None:
        super().__init__(logging.WARNING)
        self._processors = _processors(format)

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        lines = _Lines(record.name)
        try:
            event: Any = {"event": record.getMessage(), "exc_info": record.exc_info}
            for processor in self._processors:
                event = processor(lines, level, event)
        except Exception:  # noqa: BLE001  # as in every handler of logging: a record must not hurt whoever writes it
            self.handleError(record)
        else:
            lines.write(event)


class _Lines:
    """The end of structlog's chain."""

    def __init__(self, *names: Any) -> None:
        self.name = names[0] if names else None

    def write(self, line: bytes) -> None:
        _output.write(line)

    debug = info = warning = warn = error = critical = fatal = exception = msg = log = write


def _processors(format: Format) -> list[Processor]:
    """structlog's chain: an event dict in, a line out."""
    from structlog import dev
    from structlog.contextvars import merge_contextvars
    from structlog.processors import add_log_level

    if format == "json":
        return [merge_contextvars, add_log_level, _with_traceback, _render_json]
    colors = os.isatty(STANDARD_ERROR) and not os.environ.get("NO_COLOR")
    # The default formatter of rich shows local variables: secrets, possibly.
    console = dev.ConsoleRenderer(colors=colors, exception_formatter=dev.plain_traceback)

    def render(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        event = _in_order(logger, event)
        event["timestamp"] = event["timestamp"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return _line(console(logger, method, event))

    return [merge_contextvars, add_log_level, _with_traceback, render]


def _with_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The event with the text of its exception, whatever exception that is."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exception()
    if isinstance(error, BaseException):
        event["exception"] = traceback_of(error).rstrip("\n")
    return event


def _in_order(logger: WrappedLogger, event: EventDict) -> EventDict:
    """The event with a time and a logger's name, its well-known keys first, so that lines can be read down the page."""
    head = {"timestamp": datetime.now(UTC), "level": event["level"], "logger": logger.name, "event": event.get("event")}
    head.update((key, event[key]) for key, _ in _CONTEXT if key in event)
    return {**head, **event}


def _render_json(logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    event = _in_order(logger, event)
    try:
        return _line(_encode(event).decode())
    except (ValueError, TypeError, RecursionError):
        # A line must not fail for what it carries: lone surrogates, values that contain themselves.
        return _line(_encode({key: ascii(value) for key, value in event.items()}).decode())


def _dropped(count: int) -> bytes:
    return _line(
        _encode({"timestamp": datetime.now(UTC), "level": "warning", "event": "log_lines_dropped", "count": count}).decode()
    )


_output = Output(_dropped)
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def _line(text: str) -> bytes:
    return (masked(text) + "\n").encode(errors="backslashreplace")
