"""What wakes the supervisor's loop besides its sockets: signals, and other threads."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable


class Signals:
    """Signals as data: the handlers only note them, the loop acts on them.

    ``received`` are those that end the process. ``requests`` are the others, oldest first: SIGHUP asks for the new code,
    SIGTTIN for a child more and SIGTTOU for one less, where ``requests`` says that somebody grants them. ``reap`` collects
    the children that have ended.
    """

    def __init__(self, *, requests: bool = False, reap: Callable[[], None] = lambda: None) -> None:
        self._reap = reap
        self.received: list[int] = []
        self.requests: list[int] = []
        self.wake, self.waker = socket.socketpair()
        for end in (self.wake, self.waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self.received.append(number))
        if requests:
            self._in_terminal = _has_terminal()
            signal.signal(signal.SIGHUP, self._hung_up)
            for number in (signal.SIGTTIN, signal.SIGTTOU):
                signal.signal(number, lambda number, _: self.requests.append(number))

    def _hung_up(self, number: int, _: object) -> None:
        """Somebody sent SIGHUP; or the kernel did, because the terminal is gone: that is an end, as it was before daemons."""
        gone = self._in_terminal and not _has_terminal()
        (self.received if gone else self.requests).append(number)

    def request(self, number: int) -> None:
        """Have the loop act as if this signal had come, from another thread."""
        self.requests.append(number)
        self.wake_loop()

    def hear(self) -> None:
        """The loop is awake: forget what woke it, and have what has ended collected."""
        self.wake.recv(4096)
        self._reap()

    def wake_loop(self) -> None:
        """Have the loop look, from another thread."""
        with contextlib.suppress(BlockingIOError):  # full means that the loop has yet to look anyway
            self.waker.send(b".")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
