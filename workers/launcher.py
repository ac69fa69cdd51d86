"""The supervisor's end of the zygote: starts it, asks it for children, hears of their ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

import msgspec

from taskq.decoding import decoded
from taskq.workers import blackbox
from taskq.workers.zygote import START, Ready, Report

_CHUNK = 65_536
#: How long to wait for a process that was killed, in seconds.
KILLED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended: by a signal or with an exit code, and in which circumstances, if that is known.

    ``peak_memory`` is the most it had, in bytes, 0 if unknown.
    """

    signal: int = 0
    exit_code: int = 0
    peak_memory: int = 0
    circumstances: str = ""

    @classmethod
    def from_status(cls, status: int, peak_memory: int, circumstances: str = "") -> Death:
        """Out of what ``os.waitpid`` says."""
        code = os.waitstatus_to_exitcode(status)
        return cls(max(-code, 0), max(code, 0), peak_memory, circumstances)

    @property
    def signal_name(self) -> str:
        """The signal's name, such as SIGKILL; empty where there was none."""
        if not self.signal:
            return ""
        return signal.Signals(self.signal).name if self.signal in _SIGNALS else f"signal {self.signal}"

    @property
    def cause(self) -> str:
        """The signal's name or the exit code, in words."""
        return self.signal_name or f"exit code {self.exit_code}"

    def __str__(self) -> str:
        memory = f", {self.peak_memory / 2**20:.0f} MiB at its peak" if self.peak_memory else ""
        circumstances = f", {self.circumstances}" if self.circumstances else ""
        return f"{self.cause}{memory}{circumstances}"


_SIGNALS = frozenset(map(int, signal.Signals))


class Launcher:
    """One zygote process, seen from the supervisor. The supervisor itself never forks.

    It works in ``folder``, or where the supervisor does if there is no such folder any more. Raises ``OSError`` where no
    process can be started.
    """

    def __init__(self, spec: str, command_line: str, notes: int, worker: str, folder: str | None = None) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            arguments = [spec, command_line, str(theirs.fileno()), str(notes), worker, str(os.getpid())]
            try:
                self.process = subprocess.Popen(
                    # Nothing that lies beside the application takes the place of what taskq itself imports.
                    [sys.executable, "-P", "-m", "taskq.workers.zygote", *arguments],
                    pass_fds=(theirs.fileno(), notes),
                    cwd=folder if folder and os.path.isdir(folder) else None,
                )
            except OSError:
                self.control.close()
                raise
        self._buffer = b""
        self._decode = msgspec.json.Decoder(Report).decode
        self.lost = False
        #: The tasks of the application that it has imported, in the order in which its children number them.
        self.tasks: tuple[str, ...] = ()
        #: What these say of themselves, see ``Ready``.
        self.facts: dict[str, dict[str, str]] = {}

    def fileno(self) -> int:
        """The control socket, readable when ``reports`` has something."""
        return self.control.fileno()

    def reports(self) -> list[Report]:
        """What the zygote has to say; sets ``lost`` when it is gone.

        Raises ``MessageError`` for what is no report, as of a zygote whose taskq was updated on the disk.
        """
        if self.control.fileno() < 0:
            # Closed since the loop found that it was readable.
            return []
        try:
            chunk = self.control.recv(_CHUNK)
        except ConnectionResetError:
            chunk = b""
        self.lost = not chunk
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        reports = [decoded(self._decode, line, "what the zygote reports") for line in lines]
        for report in reports:
            if isinstance(report, Ready):
                self.tasks, self.facts = report.tasks, report.facts
        return reports

    def start_child(self, index: int) -> tuple[socket.socket, int]:
        """Ask for a child; returns the supervisor's end of its pipe, and its black box.

        Raises ``BrokenPipeError`` or ``ConnectionResetError`` where the zygote is gone, another ``OSError`` where this process
        has too few descriptors.
        """
        with contextlib.ExitStack() as undone:
            box = blackbox.create()
            undone.callback(os.close, box)
            mine, theirs = socket.socketpair()
            undone.callback(mine.close)
            mine.setblocking(False)
            with theirs:
                socket.send_fds(self.control, [START.pack(index)], [theirs.fileno(), box])
            undone.pop_all()
        return mine, box

    def hang_up(self) -> None:
        """Have the zygote end by itself."""
        self.control.close()

    def has_ended(self, *, kill: bool) -> bool:
        """Whether the process is gone, which ``kill`` brings about."""
        if kill:
            self.process.kill()
        return self.process.poll() is not None

    def close(self, timeout: float) -> None:
        """Have the zygote end, at the latest after ``timeout`` seconds."""
        self.hang_up()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            # Not for ever: what a freezer holds dies only when it is let go.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(KILLED_SECONDS)
