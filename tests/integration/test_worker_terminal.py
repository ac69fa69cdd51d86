"""A worker in a terminal: when that is closed, the worker ends in order, although SIGHUP means something else to daemons."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from typing import Any

from tests.support import ROOT, Stage, eventually, json_lines, matching, processes_of


def test_a_closed_terminal_ends_the_worker(sqlite_stage: Stage) -> None:
    log = sqlite_stage.folder / "worker.log"

    def logged(event: str) -> list[dict[str, Any]]:
        return matching(json_lines(log), {"event": event})

    command = [sys.executable, "-m", "taskq", "worker", "-A", "tests.apps.basic", "--log-format", "json"]
    process, terminal = pty.fork()
    if not process:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(ROOT)
        os.execve(sys.executable, command, sqlite_stage.environment())
    try:
        eventually(lambda: logged("worker_consuming"), "the worker consumes")
        os.kill(process, signal.SIGHUP)
        eventually(lambda: logged("reloaded"), "an operator's SIGHUP reloads")
    finally:
        os.close(terminal)
    deadline = time.monotonic() + 15.0
    while not (ended := os.waitpid(process, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ended[0]:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert ended == (process, 0), log.read_text()
    (line,) = logged("worker_stopping")
    assert line["signal"] == "SIGHUP"
    assert not processes_of(process)
