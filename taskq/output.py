"""Standard error, for lines that must not hold up whoever writes them.

A pipe that nobody reads is full after 64 KiB, and a plain write would then wait for ever: a supervisor that waits obeys no
signal and enforces no limit. So a line waits for a moment at most, and is dropped then; how many were is said once there is
room again.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import time
from collections.abc import Callable

STANDARD_ERROR = 2
#: How long a line waits for room, in seconds; while lines are being dropped, none of them waits.
PATIENCE = 0.2
_REOPEN = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Output:
    """Writes whole lines with one system call where it can, so that those of several processes don't mix.

    ``told`` makes the line that says how many were dropped. Belongs to no thread: where two write at the same moment, one of
    the lines may be counted wrongly, and nothing else.
    """

    def __init__(self, told: Callable[[int], bytes]) -> None:
        self._told = told
        self._identity: tuple[int, int] | None = None
        self._mine: socket.socket | io.FileIO | None = None
        #: What is left of a line that went out in part.
        self._rest = b""
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """The line goes out, or is dropped."""
        text = self._told(self.dropped) + line if self.dropped else line
        try:
            if self._send(text):
                self.dropped = 0
            else:
                self.dropped += 1
        except OSError:
            # Standard error is gone or its disk is full. A lost line is less than a lost supervisor, and where could
            # it be reported?
            self._rest = b""

    def _send(self, text: bytes) -> bool:
        """Whether it went out; what did in part counts as out, and the rest goes first the next time."""
        write = self._writer()
        give_up = time.monotonic() + (0.0 if self.dropped else PATIENCE)
        data = self._rest + text
        left = data
        while left:
            try:
                left = left[write(left) :]
            except BlockingIOError:
                wait = give_up - time.monotonic()
                if wait <= 0 or not select.select([], [STANDARD_ERROR], [], wait)[1]:
                    out = len(left) < len(text)
                    self._rest = left if out else left[: max(0, len(left) - len(text))]
                    return out
        self._rest = b""
        return True

    def _writer(self) -> Callable[[bytes], int]:
        """What writes without waiting. The descriptor itself stays as it is: others share what it stands for."""
        now = os.fstat(STANDARD_ERROR)
        if self._identity != (now.st_dev, now.st_ino):
            self._identity = now.st_dev, now.st_ino
            self._write = self._opened(now.st_mode)
        return self._write

    def _opened(self, mode: int) -> Callable[[bytes], int]:
        mine, self._mine = self._mine, None
        if mine is not None:
            mine.close()
        if stat.S_ISSOCK(mode):
            connected = socket.socket(fileno=os.dup(STANDARD_ERROR))
            self._mine = connected
            return lambda line: connected.send(line, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(mode):
            try:
                reopened = io.FileIO(os.open(f"/proc/self/fd/{STANDARD_ERROR}", _REOPEN), "w")
            except OSError:
                return _when_writable
            self._mine = reopened
            return lambda line: os.write(reopened.fileno(), line)
        return lambda line: os.write(STANDARD_ERROR, line)


def _when_writable(line: bytes) -> int:
    """For somebody else's pipe, which can't be opened anew. It takes so much without waiting, unless others are faster."""
    if not select.select([], [STANDARD_ERROR], [], 0)[1]:
        raise BlockingIOError
    return os.write(STANDARD_ERROR, line[: select.PIPE_BUF])
