"""The backend ``postgresql://``: results, documents and chords in a PostgreSQL database, in tables of its own."""

from __future__ import annotations

from taskq.results.postgres.store import PostgresResults

__all__ = ["PostgresResults"]
