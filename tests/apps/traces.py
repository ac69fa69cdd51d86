"""Traces: what tasks of the tests leave behind, one JSON line each, in a file that survives whoever is killed.

One ``write`` with ``O_APPEND`` for each line, so lines of several processes neither mix nor get lost.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def trace(event: str, **fields: Any) -> None:
    """Append a line: the event, the process, the moment (``time.monotonic``, the same clock for all processes)."""
    append(Path(os.environ["TRACES"]), event, **fields)


def append(path: Path, event: str, **fields: Any) -> None:
    """The same in a file of one's choice."""
    line = json.dumps({"event": event, "pid": os.getpid(), "at": time.monotonic(), **fields}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def gate(name: str) -> Path:
    """The file that a test creates to let tasks pass."""
    return Path(os.environ["GATES"], name)


def pass_gate(name: str) -> None:
    """Return once the test has opened this gate."""
    while not gate(name).exists():
        time.sleep(0.005)
