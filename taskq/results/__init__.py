"""Where the ends of tasks are kept, and how callers get at them. Drivers are imported when a URL asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from taskq.config import masked
from taskq.errors import ConfigurationError
from taskq.locks import importing
from taskq.results.store import ResultStore

if TYPE_CHECKING:
    from taskq.results.rpc import OpenReplies
    from taskq.sqlite import Database


def open_store(url: str, ttl: float, database: Database | None = None, open_replies: OpenReplies | None = None) -> ResultStore:
    """The store at this URL; records live ``ttl`` seconds. It shares the broker's open ``database`` where that is given.

    ``open_replies`` is the broker's way to a reply queue, for ``rpc://`` alone. Raises ``ConfigurationError`` for a URL that
    makes no sense, and where its driver is not installed.
    """
    match url.partition("://")[0]:
        case "sqlite":
            with importing:
                from taskq.results.sqlite import SqliteResults

            return SqliteResults(url, ttl, database)
        case "redis" | "rediss" | "redis+socket":
            with importing, _driver("redis", extra="redis"):
                from taskq.results.redis import RedisResults
            return RedisResults(url, ttl)
        case "postgresql":
            with importing, _driver("psycopg", extra="postgres"):
                from taskq.results.postgres import PostgresResults
            return PostgresResults(url, ttl)
        case "rpc" if open_replies is not None:
            with importing:
                from taskq.results.rpc import RpcResults

            return RpcResults(open_replies, ttl)
        case _:
            raise ConfigurationError(f"{masked(url)!r} is no backend that keeps results")


@contextmanager
def _driver(package: str, extra: str) -> Iterator[None]:
    """Says how to install the package, where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        text = f"this backend needs the package {package!r}, which is not installed: pip install 'taskq-core[{extra}]'"
        raise ConfigurationError(text) from error
