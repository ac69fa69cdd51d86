"""Processes under measurement: started, watched through /proc (Linux), and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class BenchmarkFailed(Exception):
    """A system did not do what it was to be measured at; says what, and what the system printed."""


class Worker:
    """A worker with all its processes, for a ``with`` block."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._process.terminate()
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            pass  # what it does with SIGTERM is not measured here
        finally:
            with contextlib.suppress(ProcessLookupError):  # as it should be: none is left
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def wait_until(self, condition: Callable[[], bool], timeout: float, what: str, every: float = 0.01) -> None:
        """Return as soon as the condition holds; raises ``BenchmarkFailed`` if the worker ends or ``timeout`` seconds pass."""
        deadline = time.monotonic() + timeout
        while not condition():
            if (code := self._process.poll()) is not None:
                raise self.failed(f"the worker ended with exit code {code}")
            if time.monotonic() > deadline:
                raise self.failed(f"not within {timeout:g} s: {what}")
            time.sleep(every)

    def failed(self, what: str) -> BenchmarkFailed:
        return BenchmarkFailed(f"{what}; the worker printed:\n{self._log.read_text(errors='replace')[-4000:]}")

    def cpu(self) -> dict[int, float]:
        """Seconds of processor time, user and system, that each process of the worker has used."""
        return {pid: cpu_seconds(pid) for pid in descendants(self.pid)}

    def memory(self) -> float:
        """Megabytes of all its processes together; what n processes share counts as one nth in each (PSS)."""
        return sum(pss_kilobytes(pid) for pid in descendants(self.pid)) / 1024


def used(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Processor seconds between two readings of ``Worker.cpu``."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """As utime + stime in /proc/<pid>/stat, but in nanoseconds instead of ticks: the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def pss_kilobytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise BenchmarkFailed(f"/proc/{pid}/smaps_rollup has no line 'Pss:'; a Linux kernel from 4.14 on has one")
