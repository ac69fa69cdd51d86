"""Where the ends of tasks are kept, and how callers get at them. Drivers are imported when a URL asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.results.store import ResultStore

if TYPE_CHECKING:
    from taskq.sqlite import Database


def open_store(url: str, ttl: float, database: Database | None = None) -> ResultStore:
    """The store at this URL; records live ``ttl`` seconds. It shares the broker's open ``database`` where that is given."""
    from taskq.results.sqlite import SqliteResults

    return SqliteResults(url, ttl, database)
