"""py-amqp's TCP and TLS transports, their sockets made non-blocking and their writes buffered."""

from __future__ import annotations

import ssl
from typing import Any

from amqp.transport import SSLTransport, TCPTransport

RECEIVE_BYTES = 131_072
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Buffered:
    """``out`` is what waits to be sent; ``flush`` sends, ``read`` receives, and neither waits."""

    sock: Any
    out: bytearray

    def _setup_transport(self) -> None:
        super()._setup_transport()  # type: ignore[misc]
        self.sock.setblocking(False)
        self.out = bytearray()
        self._write = self.out.extend

    def write(self, data: bytes | memoryview) -> None:
        """What py-amqp calls for each frame."""
        self.out += data

    def flush(self) -> bool:
        """Send what the socket takes; whether everything is sent."""
        try:
            while self.out:
                del self.out[: self._open_socket().send(self.out)]
        except _WOULD_BLOCK:
            return False
        return True

    def read(self) -> bytes:
        """What has arrived; empty if nothing has. Raises ``ConnectionResetError`` at the stream's end."""
        try:
            data: bytes = self._open_socket().recv(RECEIVE_BYTES)
        except _WOULD_BLOCK:
            return b""
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        return data

    def pending(self) -> int:
        """How many bytes TLS has read ahead: the socket does not show them."""
        return 0

    def _open_socket(self) -> Any:
        if self.sock is None:
            raise ConnectionResetError("the connection is closed")
        return self.sock


class Tcp(_Buffered, TCPTransport):  # type: ignore[misc]
    """``amqp://``."""


class Tls(_Buffered, SSLTransport):  # type: ignore[misc]
    """``amqps://``."""

    def pending(self) -> int:
        """How many bytes TLS has read ahead: the socket does not show them."""
        return int(self._open_socket().pending())
