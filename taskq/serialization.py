"""JSON, and nothing else: what may cross the wire, and how it is written.

Plain JSON values and ``datetime``, ``date``, ``time``, ``Decimal``, ``UUID`` and ``bytes`` come back as what they were. The
six are written as Kombu writes them (``{"__type__": …, "__value__": …}``, see ``kombu.utils.json``), so that Celery reads
them; that form has no time zones but UTC and fixed offsets. Everything else is refused before it is sent, because JSON would
change it silently. No decoder here runs code.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from taskq.decoding import UNREADABLE
from taskq.describe import bounded, module_of, name_of, repr_of, text_of
from taskq.errors import ArgumentRefused, MessageError

_TYPE, _VALUE = "__type__", "__value__"


def _bytes_marker(value: bytes) -> tuple[str, str]:
    try:
        return "bytes", value.decode("utf-8")
    except UnicodeDecodeError:
        return "base64", base64.b64encode(value).decode("ascii")


def _iso(value: datetime | time) -> str:
    """The moment in ISO 8601, which knows of offsets, but neither of zones nor of hours that come twice."""
    hint = "send a datetime" if isinstance(value, time) else "send it .astimezone(UTC)"
    if value.fold:
        raise _Refused(f"JSON would lose that it is the second of two equal local times (fold=1); {hint}")
    if value.tzinfo is not None and not isinstance(value.tzinfo, timezone) and value.tzname() != "UTC":
        raise _Refused(f"JSON would keep at most the offset of its time zone {value.tzinfo}; {hint}")
    return value.isoformat()


_MARKERS: Mapping[type, Callable[[Any], tuple[str, Any]]] = {
    datetime: lambda value: ("datetime", _iso(value)),
    date: lambda value: ("date", value.isoformat()),
    time: lambda value: ("time", _iso(value)),
    Decimal: lambda value: ("decimal", str(value)),
    UUID: lambda value: ("uuid", {"hex": value.hex}),
    bytes: _bytes_marker,
}
_REVIVERS: Mapping[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda parts: UUID(hex=parts["hex"]),
    "bytes": lambda text: text.encode("utf-8"),
    "base64": lambda text: base64.b64decode(text.encode("ascii"), validate=True),
}


class _Refused(Exception):
    """Says what was refused and where in the value it stands."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.path = ""


def _faithful(value: Any, tuples: bool) -> Any:
    """The value with marked types written out; raises ``_Refused`` for what JSON would change."""
    kind = type(value)
    if kind is str:
        if not value.isascii():
            _check_unicode(value)
        return value
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _Refused(f"JSON has no {value!r}; send None or a string instead")
        return value
    if kind is list or (tuples and kind is tuple):
        return [_inside(item, f"[{index}]", tuples) for index, item in enumerate(value)]
    if kind is dict:
        return _faithful_dict(value, tuples)
    if marker := _MARKERS.get(kind):
        name, written = marker(value)
        return {_TYPE: name, _VALUE: written}
    raise _Refused(_way_out(value))


def _faithful_dict(value: dict[Any, Any], tuples: bool) -> dict[str, Any]:
    for key in value:
        if type(key) is not str:
            raise _Refused(f"JSON has text keys only, and would turn the key {repr_of(key)} into text; use str keys")
        if not key.isascii():
            _check_unicode(key)
    if value.keys() == {_TYPE, _VALUE}:
        raise _Refused(f"a dict of exactly {_TYPE!r} and {_VALUE!r} is how the wire marks types; use other keys")
    return {key: _inside(item, f"[{key!r}]", tuples) for key, item in value.items()}


def _inside(item: Any, step: str, tuples: bool) -> Any:
    try:
        return _faithful(item, tuples)
    except _Refused as refused:
        refused.path = step + refused.path
        raise


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Refused("the text holds a lone surrogate, which UTF-8 cannot carry; send bytes instead") from None


def _way_out(value: Any) -> str:
    """Why a value is refused, with what to send instead."""
    kind = type(value)
    name = f"{module_of(kind)}.{name_of(kind)}".removeprefix("builtins.")
    if isinstance(value, enum.Enum):
        hint = "send its .value"
    elif isinstance(value, (set, frozenset, tuple)):
        hint = "send a list"
    elif dataclasses.is_dataclass(value):
        hint = "send dataclasses.asdict() of it"
    elif hasattr(kind, "pk") or hasattr(kind, "__table__"):
        hint = "send its primary key and load it in the task"
    elif isinstance(value, (str, int, float, list, dict, bytes, datetime, date, time, Decimal, UUID)):
        base = next(base for base in kind.__mro__ if base.__module__ in _STANDARD_MODULES)
        hint = f"a subclass would come back as plain {base.__name__}: convert it first"
    else:
        hint = "send plain values and rebuild it in the task"
    return f"JSON cannot carry {name} faithfully; {hint}"


_STANDARD_MODULES = frozenset({"builtins", "datetime", "decimal", "uuid"})


def plain_arguments(
    task: str, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str] = ()
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call as JSON values; ``names`` are those of the positional parameters. Raises ``ArgumentRefused``."""
    plain_args = []
    for index, value in enumerate(args):
        label = repr(names[index]) if index < len(names) else f"number {index + 1}"
        plain_args.append(_argument(task, label, value))
    return plain_args, {name: _argument(task, repr(name), value) for name, value in kwargs.items()}


def _argument(task: str, label: str, value: Any) -> Any:
    return _plain(value, f"argument {label} of task {task!r}", tuples=False)


def plain_result(value: Any) -> Any:
    """A task's return value as JSON values; tuples become lists. Raises ``ArgumentRefused``."""
    return _plain(value, "the return value", tuples=True)


def _plain(value: Any, what: str, *, tuples: bool) -> Any:
    try:
        return _faithful(value, tuples)
    except _Refused as refused:
        where = f", at {bounded(refused.path)}" if refused.path else ""
        raise ArgumentRefused(f"{what}{where}: {refused}") from None
    except RecursionError:
        raise ArgumentRefused(f"{what} is nested too deeply, or contains itself") from None
    except Exception as error:  # a time zone of the application's, for example
        raise ArgumentRefused(f"{what} cannot be written as JSON: {repr_of(error)}") from error


def _revive(value: dict[str, Any]) -> Any:
    if value.keys() != {_TYPE, _VALUE}:
        return value
    reviver = _REVIVERS.get(value[_TYPE]) if isinstance(value[_TYPE], str) else None
    if reviver is None:
        raise ValueError(f"unknown type marker {value[_TYPE]!r}")
    return reviver(value[_VALUE])


def decode(data: bytes, charset: str | None = "utf-8") -> Any:
    """The value of a JSON text. Raises ``MessageError``; runs no code whatever the text is."""
    try:
        if charset and charset.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
            data = data.decode(charset).encode("utf-8")
        if b'"__type__"' in data:
            return json.loads(data, object_hook=_revive)
        try:
            return msgspec.json.decode(data)
        except UNREADABLE:
            # Python's own encoder, which Celery uses, writes NaN and Infinity, which are no JSON.
            return json.loads(data)
    except UNREADABLE as error:
        raise MessageError(f"the body is not the JSON that taskq speaks: {name_of(type(error))}: {text_of(error)}") from None
