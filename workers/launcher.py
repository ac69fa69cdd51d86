"""The supervisor's end of the zygote: starts it, asks it for children, hears of their ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

import msgspec

from taskq.workers.zygote import START, Report

_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended: by a signal or with an exit code; ``peak_memory`` is the most it had, in bytes, 0 if unknown."""

    signal: int = 0
    exit_code: int = 0
    peak_memory: int = 0

    @classmethod
    def from_status(cls, status: int, peak_memory: int) -> Death:
        """Out of what ``os.waitpid`` says."""
        code = os.waitstatus_to_exitcode(status)
        return cls(-code, 0, peak_memory) if code < 0 else cls(0, code, peak_memory)

    def __str__(self) -> str:
        how = signal.Signals(self.signal).name if self.signal in _SIGNALS else f"signal {self.signal}"
        memory = f", {self.peak_memory / 2**20:.0f} MiB at its peak" if self.peak_memory else ""
        return f"{how if self.signal else f'exit code {self.exit_code}'}{memory}"


_SIGNALS = frozenset(map(int, signal.Signals))


class Launcher:
    """One zygote process, seen from the supervisor. The supervisor itself never forks."""

    def __init__(self, spec: str, command_line: str, notes: int, worker: str) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            arguments = [spec, command_line, str(theirs.fileno()), str(notes), worker, str(os.getpid())]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskq.workers.zygote", *arguments], pass_fds=(theirs.fileno(), notes)
            )
        self._buffer = b""
        self._decoder = msgspec.json.Decoder(Report)
        self.lost = False

    def fileno(self) -> int:
        """The control socket, readable when ``reports`` has something."""
        return self.control.fileno()

    def reports(self) -> list[Report]:
        """What the zygote has to say; sets ``lost`` when it is gone."""
        try:
            chunk = self.control.recv(_CHUNK)
        except ConnectionResetError:
            chunk = b""
        self.lost = not chunk
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return [self._decoder.decode(line) for line in lines]

    def start_child(self, index: int) -> socket.socket:
        """Ask for a child; returns the supervisor's end of its pipe. Raises ``OSError`` where the zygote is gone."""
        mine, theirs = socket.socketpair()
        with theirs:
            mine.setblocking(False)
            socket.send_fds(self.control, [START.pack(index)], [theirs.fileno()])
        return mine

    def close(self, timeout: float) -> None:
        """Have the zygote end, at the latest after ``timeout`` seconds."""
        self.control.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
