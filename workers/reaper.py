"""The reaper: collects the orphans that become this process's children, so that no zombie stays.

A process whose parent has died is given to process 1. In a container that is the supervisor: what tasks leave behind comes to
it, and nobody else would ever ask how it ended. Invariant: a process that this one has started is left to whoever started it,
its exit code included.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from taskq import log

logger = log.get_logger("taskq.reaper")


class Reaper:
    """Knows which processes are this one's own; the others are orphans."""

    def __init__(self) -> None:
        self._own: dict[int, subprocess.Popen[Any]] = {}

    def spare(self, process: subprocess.Popen[Any]) -> None:
        """Leave this process to whoever started it. To be said in the thread that calls ``reap``."""
        self._own[process.pid] = process

    def watch(self) -> None:
        """Have the end of a child wake the loop, as a signal does; collects those that have ended before."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.reap()

    def reap(self) -> None:
        """Collect what has ended. Without ``waitid`` (macOS) this process is never process 1."""
        while hasattr(os, "waitid"):
            try:
                # Looked at and left there: whose it is decides who takes it.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if (own := self._own.pop(ended.si_pid, None)) is not None:
                # Its exit code stays with it, for whoever asks; in the way of the orphans it must not be.
                own.poll()
            else:
                os.waitpid(ended.si_pid, 0)
                logger.debug("orphan_reaped", pid=ended.si_pid, status=ended.si_status)
