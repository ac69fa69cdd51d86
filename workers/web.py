"""A web server for a few short answers: one thread, one answer for each connection, and nobody can keep it busy for long.

It serves at most ``MOST_CONNECTIONS`` at a time: one more, and the oldest is dropped, so that whoever is slow, or means harm,
never keeps out a probe. It makes few system calls for a request, because each hands the interpreter to the supervisor's loop.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from taskq import log
from taskq.errors import ConfigurationError

MOST_CONNECTIONS = 32
#: How long a connection may last, in seconds.
LONGEST = 5.0
#: How long the server pauses after an error of its own, in seconds.
PAUSE = 0.1
#: The longest request, in bytes.
LARGEST_REQUEST = 8192
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

logger = log.get_logger("taskq.http")


class Answer(NamedTuple):
    """What is sent for a request."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class Connection:
    """One request on its way in, then its answer on its way out. ``until`` is when it is dropped."""

    def __init__(self, peer: socket.socket, until: float) -> None:
        self.peer = peer
        self.until = until
        self.received = b""
        self.unsent = b""


class Server:
    """Listens on ``host`` and ``port`` (0: a free one); ``answer`` is called in its thread with the path of each request.

    Raises ``ConfigurationError`` where nothing can listen there.
    """

    def __init__(self, host: str, port: int, answer: Callable[[str], Answer]) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise ConfigurationError(f"http: nothing can listen on {host} port {port}: {error.strerror}") from error
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._answer = answer
        self._waker, wake = socket.socketpair()
        self._connections: dict[socket.socket, Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)
        self._wake = wake
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="taskq-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        logger.info("http_listening", url=self.url)

    def stop(self) -> None:
        """Answer no more, and close every connection."""
        self._stopping.set()
        self._waker.close()
        self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as error:  # a worker that no probe reaches is killed, however well it does
                logger.error("http_failing", error=repr(error), exc_info=error)
                self._stopping.wait(PAUSE)
        self._close()

    def _turn(self) -> None:
        now = time.monotonic()
        # In the order in which they came, and so in that in which they are over.
        for connection in [connection for connection in self._connections.values() if connection.until <= now]:
            self._drop(connection)
        oldest = next(iter(self._connections.values()), None)
        for key, events in self._selector.select(None if oldest is None else oldest.until - now):
            if key.fileobj is self._listener:
                self._accept()
            elif key.data is not None and key.data.peer in self._connections:
                self._advance(key.data, events)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:
            # It has gone already, or there are no descriptors left, and then it is there to be accepted at once again.
            logger.debug("http_not_accepted", error=str(error))
            time.sleep(0.05)
            return
        if len(self._connections) >= MOST_CONNECTIONS:
            self._drop(next(iter(self._connections.values())))
        peer.setblocking(False)
        connection = Connection(peer, time.monotonic() + LONGEST)
        self._selector.register(peer, selectors.EVENT_READ, connection)
        self._connections[peer] = connection
        # Whoever asks has most often sent the request by now.
        self._advance(connection, selectors.EVENT_READ)

    def _advance(self, connection: Connection, events: int) -> None:
        """Read what has come, and send what there is room for."""
        try:
            if events & selectors.EVENT_READ and not self._read(connection):
                return
            connection.unsent = connection.unsent[connection.peer.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        if connection.unsent:
            self._selector.modify(connection.peer, selectors.EVENT_WRITE, connection)
        else:
            self._drop(connection)

    def _read(self, connection: Connection) -> bool:
        """Whether the request is whole, and so there is something to send."""
        try:
            chunk = connection.peer.recv(LARGEST_REQUEST)
        except BlockingIOError:
            return False
        connection.received += chunk
        head, whole, _ = connection.received.partition(b"\r\n\r\n")
        if not whole and chunk and len(connection.received) < LARGEST_REQUEST:
            return False
        if not whole and not chunk:
            self._drop(connection)
            return False
        connection.unsent = self._response(head) if whole else _encoded(Answer(431, b"the request is too long\n"))
        return True

    def _response(self, head: bytes) -> bytes:
        match head.partition(b"\r\n")[0].decode("latin-1").split(" "):
            case ["GET" | "HEAD" as method, path, version] if version.startswith("HTTP/1."):
                return _encoded(self._answered(path.partition("?")[0]), body=method == "GET")
            case [_, _, version] if version.startswith("HTTP/1."):
                return _encoded(Answer(405, b"only GET and HEAD are answered\n"))
        return _encoded(Answer(400, b"this is no request of HTTP/1.1\n"))

    def _answered(self, path: str) -> Answer:
        try:
            return self._answer(path)
        except Exception as error:  # whatever was wrong with this answer, the next probe wants one too
            logger.error("http_failed", path=path, error=repr(error), exc_info=error)
            return Answer(500, b"see the worker's log\n")

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.peer]
        self._selector.unregister(connection.peer)
        connection.peer.close()

    def _close(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        self._listener.close()
        self._wake.close()


def _encoded(answer: Answer, *, body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (answer.body if body else b"")
