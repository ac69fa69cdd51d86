"""taskq, with its default settings: ``TASKQ_BROKER``, ``TASKQ_BACKEND`` and ``TASKQ_DEFAULT_QUEUE`` say the rest."""

from __future__ import annotations

from collections.abc import Iterable

from taskq import TaskQ
from tests.benchmarks.stamps import execute

app = TaskQ("benchmarks")
noop = app.task(execute)


def confirmed(indices: Iterable[int]) -> None:
    for index in indices:
        noop.delay(index)


def many(indices: Iterable[int]) -> None:
    app.send_many(noop.s(index) for index in indices)


close = app.close
SENDERS = {"confirmed": confirmed, "many": many}
