"""Other processes on a backend: ``python -m tests.conformance.results.processes ROLE URL NAME [COUNT]``.

``answer`` waits for ``NAME-ping-0``, stores ``NAME-pong-0``, and so on; ``wait`` says ``waiting`` and waits for NAME.
"""

from __future__ import annotations

import os
import sys

from taskq.results import open_store
from taskq.results.store import ResultStore
from tests.conformance.results.support import record


def answer(store: ResultStore, name: str, count: int) -> None:
    for number in range(count):
        store.wait(f"{name}-ping-{number}", 30.0)
        store.store([record(f"{name}-pong-{number}")])


def wait(store: ResultStore, name: str) -> None:
    os.write(1, b"waiting\n")
    store.wait(name, 60.0)


if __name__ == "__main__":
    opened = open_store(sys.argv[2], 60.0)
    if sys.argv[1] == "answer":
        answer(opened, sys.argv[3], int(sys.argv[4]))
    else:
        wait(opened, sys.argv[3])
