"""The end of systemd's notification socket that systemd has."""

from __future__ import annotations

import contextlib
import socket
import uuid
from pathlib import Path
from typing import Self


class Systemd:
    """Hears what a service says. Its socket is in the folder, or has an abstract address where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.address = f"{folder}/notify" if folder is not None else f"@taskq-{uuid.uuid4()}"
        self.raw_address = self.address.replace("@", "\0", 1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.raw_address)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def deafen(self) -> None:
        """Let no more be said, until ``heard`` has read what was."""
        said = True
        while said:
            # What is unread counts against its sender too, so each says little.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as noise, contextlib.suppress(BlockingIOError):
                noise.setblocking(False)
                said = False
                for _ in range(50):
                    noise.sendto(b"NOISE=1", self.raw_address)
                    said = True

    def heard(self, about: str = "") -> list[str]:
        """What was said since the last call, of these words those that begin so."""
        words = []
        with contextlib.suppress(BlockingIOError):
            while True:
                words.append(self._socket.recv(4096).decode())
        return [word for word in words if word.startswith(about)]
