"""Private Redis servers for tests, see ``tests.servers``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers import START_TIMEOUT, die_with_parent, free_port, freeze, spawner, wait_until


@contextmanager
def running_redis(tls: Mapping[str, Path] | None = None) -> Iterator[Redis]:
    """A private server that runs for the length of the block."""
    server = Redis(tls)
    try:
        yield server.start()
    finally:
        server.stop()


class Redis:
    """A private Redis server that writes to the disk before it answers. ``tls`` holds the files of ``rediss://``.

    ``restart`` after ``kill`` keeps data and ports, so that a test sees what a server that came back would show.
    """

    def __init__(self, tls: Mapping[str, Path] | None = None) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is missing: install it with `apt-get install redis-server`")
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.tls_port = free_port()
        self.socket = self.folder / "socket"
        self._server: subprocess.Popen[bytes] | None = None
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.socket,
            "dir": self.folder,
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "always",
        }
        if tls is not None:
            settings |= {"tls-port": self.tls_port, "tls-auth-clients": "no"}
            names = {"cacertfile": "tls-ca-cert-file", "certfile": "tls-cert-file", "keyfile": "tls-key-file"}
            settings |= {names[name]: path for name, path in tls.items()}
        (self.folder / "redis.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self._command = [program, "redis.conf"]

    @property
    def url(self) -> str:
        """The URL of the server's first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Redis:
        """Start the server and wait until it answers."""
        with (self.folder / "server.log").open("ab") as output:
            self._server = spawner.submit(
                subprocess.Popen,
                self._command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            ).result()
        wait_until(self._answers, START_TIMEOUT, f"Redis answers on port {self.port}")
        return self

    def kill(self) -> None:
        """SIGKILL: the server ends without a chance to save or to say goodbye."""
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            server.wait()

    def restart(self) -> None:
        """Kill the server if it runs, and start it on the same data and ports."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Connections stay open, nothing is answered."""
        freeze(self._process_id)

    def thaw(self) -> None:
        """Undo ``freeze``."""
        os.kill(self._process_id, signal.SIGCONT)

    def stop(self) -> None:
        """End the server and remove its data."""
        self.kill()
        self._folder.cleanup()

    @property
    def _process_id(self) -> int:
        if self._server is None:
            raise RuntimeError("the Redis server does not run")
        return self._server.pid

    def _answers(self) -> bool:
        if self._server is not None and self._server.poll() is not None:
            raise RuntimeError(f"Redis ended at start:\n{(self.folder / 'server.log').read_text()[-4000:]}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(5) == b"+PONG"
        except OSError:
            return False
