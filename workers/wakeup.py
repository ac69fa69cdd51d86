"""What wakes the supervisor's loop besides its sockets: signals, and other threads."""

from __future__ import annotations

import contextlib
import signal
import socket


class Signals:
    """SIGTERM and SIGINT as data: the handlers only note them, the loop acts on them."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.wake, self.waker = socket.socketpair()
        for end in (self.wake, self.waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self.received.append(number))

    def wake_loop(self) -> None:
        """Have the loop look, from another thread."""
        with contextlib.suppress(BlockingIOError):  # full means that the loop has yet to look anyway
            self.waker.send(b".")
