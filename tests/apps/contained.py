"""An application that looks around: where it runs, as whom, and what it can write; and one that leaves processes behind."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from taskq import TaskQ
from tests.apps.traces import gate, pass_gate, trace

app = TaskQ("contained")


@app.task(name="look")
def look() -> dict[str, Any]:
    """Who and where this child is."""
    return {"user": os.getuid(), "home": os.environ.get("HOME"), "pid": os.getpid(), "supervisor": _parent(os.getppid())}


def _parent(process_id: int) -> int:
    with open(f"/proc/{process_id}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@app.task(name="write")
def write(path: str) -> str:
    """Try to write a file."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write("x")
    except OSError as error:
        return str(error.strerror)
    return "written"


@app.task(name="abandon")
def abandon(count: int, name: str) -> int:
    """Start processes that outlive this task and whoever started them, until the gate opens."""
    wait = f"(while [ ! -e '{gate(name)}' ]; do sleep 0.02; done) >/dev/null 2>&1 &"
    subprocess.run(["sh", "-c", wait * count], check=True)
    return count


@app.task(name="gobble")
def gobble(at_once: int, then: int) -> int:
    """Take so many MiB, and then as many more as slowly as a leak does."""
    held = [b"x" * (at_once << 20)]
    for _ in range(then):
        held.append(b"x" * (1 << 20))
        time.sleep(0.02)
    return len(held)


@app.task(name="hold")
def hold(key: str, name: str) -> str:
    """Runs until the test opens the gate."""
    trace("hold", key=key)
    pass_gate(name)
    return key
