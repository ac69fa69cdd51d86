"""Results in Redis, in Celery's keys and formats, so that its clients and workers share them with ours."""

from __future__ import annotations

from taskq.results.redis.store import RedisResults

__all__ = ["RedisResults"]
