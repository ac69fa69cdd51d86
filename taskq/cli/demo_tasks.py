"""The tasks of ``taskq demo``: a checksum and a line count of a file. Each run notes itself in the file ``executions``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from taskq.app import TaskQ
from taskq.attempt import Attempt

app = TaskQ("demo")
#: Where runs note themselves: one byte each, R for a run of a message that had been delivered before.
EXECUTIONS = "executions"


def examine(path: str) -> list[str | int]:
    """The SHA-256 and the number of lines of a file."""
    content = Path(path).read_bytes()
    return [hashlib.sha256(content).hexdigest(), content.count(b"\n")]


@app.task(bind=True)
def examine_file(self: Attempt, path: str) -> list[str | int]:
    """``examine``, noted."""
    with open(EXECUTIONS, "ab", buffering=0) as executions:
        executions.write(b"R" if self.redelivered or self.crashes else b"1")
    return examine(path)
