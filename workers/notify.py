"""What systemd is told of the worker, over the socket in NOTIFY_SOCKET; nothing where that is not set.

::

    READY=1       messages are consumed for the first time; until then, the unit starts
    STATUS=…      what it is doing, in words, whenever that changes
    WATCHDOG=1    twice in each WATCHDOG_USEC, while the worker is live; a loop that hangs says nothing
    RELOADING=1   it changes to the application's new code; READY=1 follows
    STOPPING=1    it is told to end
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from taskq import log
from taskq.workers.health import live, ready
from taskq.workers.vitals import Vitals

logger = log.get_logger("taskq.systemd")


class Notifier:
    """Tells systemd. ``address`` is its socket's ("": there is none); ``watchdog`` how often it wants a sign, in seconds."""

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._every = watchdog / 2 if watchdog is not None else None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self._sign_at = 0.0
        self._ready = False
        self._stopping = False
        self._status = ""

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Notifier:
        """What the environment says, which is taken out of it: it is not for the processes that this one starts."""
        address = environment.pop("NOTIFY_SOCKET", "")
        every, process_id = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        ours = every.isdigit() and process_id in ("", str(os.getpid()))
        return cls(address, int(every) / 1e6 if ours and int(every) else None)

    def beat(self, now: float, vitals: Vitals) -> float | None:
        """Say what there is to say; returns when to come again at the latest. For the loop to call at each turn."""
        if self._socket is None:
            return None
        if not (self._ready or self._stopping or vitals.connected_since is None):
            self.ready()
        if (status := ready(vitals, now).why) != self._status and self._send(f"STATUS={status}"):
            self._status = status
        if self._every is None:
            return None
        if now >= self._sign_at and live(vitals, now).good and self._send("WATCHDOG=1"):
            self._sign_at = now + self._every
        return max(self._sign_at, now + self._every / 4)

    def ready(self) -> None:
        """The worker serves."""
        self._ready = self._send("READY=1")

    def reloading(self, now: float) -> None:
        """The application's code is about to be replaced; ``reloaded`` has to follow. A unit that still starts is not told."""
        if self._ready:
            self._send(f"RELOADING=1\nMONOTONIC_USEC={int(now * 1e6)}")

    def reloaded(self) -> None:
        """It was replaced, or is not going to be."""
        if self._ready and not self._stopping:
            self.ready()

    def stopping(self) -> None:
        """The worker ends."""
        if not self._stopping:
            self._stopping = self._send("STOPPING=1")

    def close(self) -> None:
        """Say nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> bool:
        """Whether it is said; False while systemd has yet to read what it was told before."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(text.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            # Nobody listens: then nobody waits for a word either.
            logger.warning("systemd_not_told", error=str(error))
            self.close()
        return True
