"""The passing of time, for what an SQLite broker holds: all of it becomes older.

To a message, an hour passes in the same way whether the clock goes on by an hour or whatever the message says of time moves an
hour into the past. So the clock is left alone, the test's own as well as that of the code that is tested.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from taskq import liveness
from taskq.broker.sqlite.properties import encode, envelope
from taskq.errors import MessageError
from taskq.message import ALONE, DEAD_AT, DEAD_FIRST, UNKNOWN_SINCE
from taskq.sqlite import Database

#: Columns of any table that hold a moment, in seconds since the epoch.
_MOMENTS = """
select tables.name, columns.name from sqlite_master as tables join pragma_table_info(tables.name) as columns
where tables.type = 'table' and columns.name in ('due', 'expires')
"""
_DUE = "select min(due) from messages where due is not null and queue in (select value from json_each(?))"
_DATES = ("eta", "expires")
_SECONDS = (UNKNOWN_SINCE, ALONE, DEAD_AT, DEAD_FIRST)


def due_in(database: Database, queues: Sequence[str]) -> float | None:
    """In how many seconds the next delayed message of these queues is due; None where none is delayed."""
    ((due,),) = database.execute(_DUE, (msgspec.json.encode(queues).decode(),))
    return None if due is None else max(0.0, due - time.time())


def pass_time(database: Database, seconds: float) -> None:
    """Make everything in the file older by so many seconds, and have the consumers look at what is due now."""
    with database.transaction(durable=False):
        for table, column in database.execute(_MOMENTS):
            database.execute(f"update {table} set {column} = {column} - ?", (seconds,))  # noqa: S608  # names of our own schema
        rows = database.execute("select id, properties from messages")
        older = [(changed, number) for number, properties in rows if (changed := _older(properties, seconds))]
        database.execute_many("update messages set properties = ? where id = ?", older)
    liveness.ring_everyone(liveness.folder_of(database), liveness.DUE)


def _older(properties: bytes, seconds: float) -> bytes | None:
    """The properties of a message to which so much time has passed; None where they say nothing of time, or can't be read."""
    try:
        read = envelope(properties)
    except MessageError:
        return None
    headers = read.headers
    changes = {name: _moved(headers[name], seconds) for name in (*_DATES, *_SECONDS) if headers.get(name) is not None}
    if not changes:
        return None
    return encode(
        {
            "content-type": read.content_type,
            "content-encoding": read.content_encoding,
            "headers": {**headers, **changes},
            "properties": read.properties,
        }
    )


def _moved(moment: Any, seconds: float) -> Any:
    """The moment, ISO 8601 text or seconds since the epoch, so much earlier; the worker judges what is no moment."""
    if isinstance(moment, str):
        try:
            return (datetime.fromisoformat(moment) - timedelta(seconds=seconds)).isoformat()
        except (ValueError, OverflowError):
            return moment
    is_number = isinstance(moment, (int, float)) and not isinstance(moment, bool) and math.isfinite(moment)
    return moment - seconds if is_number else moment
