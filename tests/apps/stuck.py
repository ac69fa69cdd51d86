"""An application whose tasks hang or crash in C code, where no Python code can help them."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import sys
from typing import Literal

from taskq import TaskQ
from tests.apps.traces import trace

app = TaskQ("stuck")

if os.environ.get("OWN_FAULTHANDLER"):
    faulthandler.enable(sys.stderr)


@app.task(name="hang")
def hang(where: Literal["loop", "regex", "sleep"]) -> None:
    """Runs for minutes; in ``regex`` and ``sleep`` it holds the interpreter lock all the while."""
    trace("hang")
    match where:
        case "loop":
            while True:
                pass
        case "regex":
            re.match(r"(a+)+$", "a" * 64 + "b")
        case "sleep":
            ctypes.PyDLL(None).usleep(600_000_000)


@app.task(name="crash")
def crash() -> None:
    ctypes.string_at(0)


@app.task(name="crash_in_fork")
def crash_in_fork() -> None:
    """Forks a process, which crashes, and then crashes itself in another way."""
    process = os.fork()
    if process == 0:
        ctypes.string_at(0)
    os.waitpid(process, 0)
    os.abort()
