"""What the conformance tests of result backends share: a backend, and short ways to make records."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from taskq.results import open_store
from taskq.results.store import Chords, Record, ResultStore, Status
from tests.support import ROOT


class Server(Protocol):
    """A private server, as ``tests.servers`` has them."""

    def start(self) -> Any: ...
    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


@dataclass
class Backend:
    """A backend that tests share, hence ``fresh`` names; ``server`` is there where it has one."""

    kind: str
    url: str
    server: Server | None = None
    _stores: list[ResultStore] = field(default_factory=list)

    def open(self, ttl: float = 60.0) -> ResultStore:
        """A store of its own, as another process would have; closed at the end of the test."""
        store = open_store(self.url, ttl)
        self._stores.append(store)
        return store

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores:
            store.close()


def fresh() -> str:
    """A name that no other test uses."""
    return uuid.uuid4().hex


def record(task_id: str, status: Status = "SUCCESS", attempt: int = 1, value: Any = None, *, lasting: bool = False) -> Record:
    """A record as a worker makes it."""
    meta = {"task_id": task_id, "status": status, "result": value, "traceback": None, "attempt": attempt}
    return Record(task_id, status, msgspec.json.encode(meta), attempt, lasting)


def fetched(store: ResultStore, task_id: str) -> Record | None:
    """The record of one id."""
    [found] = store.fetch([task_id])
    return found


def chords_of(store: ResultStore) -> Chords:
    """The chords of a store that counts them."""
    assert store.chords is not None
    return store.chords


@contextmanager
def process(backend: Backend, role: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``tests.conformance.results.processes``; dead at the end of the block."""
    command = [sys.executable, "-m", "tests.conformance.results.processes", role, backend.url, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()
