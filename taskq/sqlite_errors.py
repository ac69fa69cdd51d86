"""What goes wrong with an SQLite file, in words that say what to do about it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from taskq.errors import DatabaseError

#: What goes wrong in SQLite, and in Python before SQLite has seen a value: numbers and texts that fit into no column.
ERRORS = (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError)


def explained(error: Exception, path: Path) -> DatabaseError:
    """What an error of SQLite's means and what to do about it; or of Python's, about a value that fits into no column."""
    code = getattr(error, "sqlite_errorcode", 0)
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            text = f"the disk of {path} is full: nothing was stored; make room and try again"
        case sqlite3.SQLITE_IOERR:
            text = f"reading or writing {path} failed ({error}): the disk is full or failing; nothing was stored"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            text = f"{path} is locked by another process; nothing was stored; see who keeps it open, with fuser or lsof"
        case sqlite3.SQLITE_NOTADB:
            text = f"{path} is not an SQLite database; name another file, or move this one away"
        case sqlite3.SQLITE_CORRUPT:
            text = f"{path} is damaged ({error}); stop the workers, save what can be saved with 'sqlite3 {path} .recover'"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            text = f"{path} cannot be opened for writing ({error}); the file and its folder must both be writable"
        case _:
            text = f"{path}: {error}"
    passing = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return DatabaseError(text, passing=code & 0xFF in passing)
