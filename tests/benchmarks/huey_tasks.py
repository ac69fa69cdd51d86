"""Huey on SQLite, results off, with and without fsync. It deletes a task when it fetches it: at most once."""

from __future__ import annotations

import os
from collections.abc import Iterable

from huey import SqliteHuey

from tests.benchmarks.stamps import execute

huey = SqliteHuey(
    os.environ["BENCH_QUEUE"], filename=os.environ["BENCH_BROKER"], results=False, fsync=os.environ["BENCH_FSYNC"] == "yes"
)
noop = huey.task()(execute)


def unconfirmed(indices: Iterable[int]) -> None:
    for index in indices:
        noop(index)


close = huey.storage.close
SENDERS = {"unconfirmed": unconfirmed}
