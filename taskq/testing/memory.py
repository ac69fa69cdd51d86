"""Where an app under test keeps its messages and results: an SQLite file in memory, which nobody else knows of.

A file rather than SQLite's own ``:memory:``, so that the application, the worker and whoever waits for a result each have their
own connection to it, as in production.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskq.app import TaskQ

_PREFIX = "taskq-testing-"
#: A file system in memory, where there is one: writes to it cost no fsync.
_MEMORY = "/dev/shm"  # noqa: S108  # only folders that tempfile makes there are used, which are ours alone


@contextmanager
def in_memory(app: TaskQ) -> Iterator[TaskQ]:
    """Inside the block, the app has an empty broker of its own in memory; afterwards it is as it was, whatever happened.

    All other settings stay. Results are kept there too, unless the app has none: then asking for one says so, as in production.
    """
    with memory(app, results=app.settings.backend_url is not None):
        yield app


@contextmanager
def memory(app: TaskQ, *, results: bool) -> Iterator[None]:
    """``in_memory``, with or without results."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_folder()) as folder:
        url = f"sqlite:///{folder}/taskq.db"
        with app.repointed(dataclasses.replace(app.settings, broker=url, backend=url if results else "off")):
            yield


def is_in_memory(app: TaskQ) -> bool:
    """Whether the app is in memory at the moment."""
    return Path(app.settings.broker).parent.name.startswith(_PREFIX)


def _folder() -> str | None:
    return _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
