"""Where the ends of tasks are kept, and how callers get at them."""

from __future__ import annotations

from taskq.results.sqlite import SqliteResults
from taskq.results.store import ResultStore
from taskq.sqlite import Database


def open_store(url: str, ttl: float, database: Database | None = None) -> ResultStore:
    """The store at this URL; records live ``ttl`` seconds. It shares the broker's open ``database`` where that is given."""
    return SqliteResults(url, ttl, database)
