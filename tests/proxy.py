"""A TCP proxy in front of a server, whose connections can be reset or held up at any moment."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

_CHUNK = 1 << 16
#: Closing a socket that lingers for zero seconds resets its connection.
_RESET = struct.pack("ii", 1, 0)

#: Both ends of a connection: the client's and the server's.
Pair = tuple[socket.socket, socket.socket]


class Proxy:
    """Listens on a port of its own and passes everything on to ``port``, while that answers."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._pairs: set[Pair] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._words: tuple[bytes, ...] = ()
        self._audible = threading.Event()
        self._audible.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flow()
        self.cut()

    @property
    def connections(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._pairs)

    def cut(self, index: int | None = None) -> None:
        """Reset every connection, or one."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs if index is None else pairs[index : index + 1]:
            self._close(pair)

    def stall(self) -> None:
        """Pass nothing on until ``flow``."""
        self._flowing.clear()

    def mute(self, *words: bytes) -> None:
        """Pass nothing on any more, until ``flow``, on a connection on which all of these bytes come at a time."""
        self._words = words
        self._audible.clear()

    def flow(self) -> None:
        """Undo ``stall`` and ``mute``."""
        self._flowing.set()
        self._audible.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target), timeout=5.0)
                except OSError:
                    _reset(client)
                    continue
                server.settimeout(None)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pair = (client, server)
                with self._lock:
                    self._pairs.add(pair)
                there = threading.Thread(target=self._pump, args=(client, server, pair, None), daemon=True)
                there.start()
                threading.Thread(target=self._pump, args=(server, client, pair, there), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, pair: Pair, other: threading.Thread | None) -> None:
        """Pass on what the source sends, its orderly end included; the second thread of a pair clears up behind both."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                self._flowing.wait()
                if all(word in chunk for word in self._words):
                    self._audible.wait()
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
            if other is None:
                return
            other.join()
        self._close(pair)

    def _close(self, pair: Pair) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.discard(pair)
        for end in pair:
            _reset(end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # Wakes the thread that reads; closing alone would not.
        end.shutdown(socket.SHUT_RD)
    end.close()
