"""Private PostgreSQL servers for tests, see ``tests.servers``.

PostgreSQL refuses to run as root. Where the tests are root, its processes are the user ``nobody``'s, and own their data.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.servers import START_TIMEOUT, die_with_parent, free_port, freeze, spawner, wait_until

#: Debian has a folder for each version.
VERSIONS = Path("/usr/lib/postgresql")
USER = "taskq"
#: For who can connect over TCP: the password must never show.
PASSWORD = "se:cr/et"  # the tests' own


@contextmanager
def running_postgres(*config: str, tls: Mapping[str, Path] | None = None) -> Iterator[Postgres]:
    """A private server that runs for the length of the block; the arguments are those of ``Postgres``."""
    server = Postgres(config, tls)
    try:
        yield server.start()
    finally:
        server.stop()


@cache
def binaries() -> Path:
    """Where the programs of the newest installed version are."""
    found = sorted(VERSIONS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError(f"{VERSIONS}/*/bin/initdb is missing: install PostgreSQL with `apt-get install postgresql`")
    return found[-1].parent


class Postgres:
    """A private PostgreSQL server, as careful with the disk as in production.

    ``config`` holds extra lines of postgresql.conf, ``tls`` the certificate files, for who asks for an encrypted connection.

    ``restart`` after ``kill`` keeps data and port, so that a test sees what a server that came back would show.
    """

    def __init__(self, config: Sequence[str] = (), tls: Mapping[str, Path] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-")
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._create([*config, *(self._encrypted(tls) if tls is not None else ())])

    @property
    def url(self) -> str:
        """The URL of the server's database."""
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/postgres?sslmode=disable"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database, for the length of the block."""
        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
        yield self.url.replace("/postgres?", f"/{name}?")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())

    def start(self) -> Postgres:
        """Start the server and wait until it answers; what is left of a killed one is waited for."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return self._start()
            except RuntimeError as error:
                if "is still in use" not in str(error).rpartition("LOG:")[2] or time.monotonic() > deadline:
                    raise

    def _start(self) -> Postgres:
        command = [str(binaries() / "postgres"), "-D", str(self.folder / "data")]
        with (self.folder / "server.log").open("ab") as log:
            self._server = spawner.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=self._begin,
            ).result()
        wait_until(self._answers, START_TIMEOUT, f"PostgreSQL answers on port {self.port}")
        return self

    def kill(self) -> None:
        """SIGKILL for every process of the server: nothing is saved, nobody is told."""
        if self._server is not None:
            self._each(lambda process_id: os.kill(process_id, signal.SIGKILL))
            self._server.wait()
            self._server = None

    def restart(self) -> None:
        """Kill the server if it runs, and start it on the same data and port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Connections stay open, nothing is answered."""
        self._each(freeze)

    def thaw(self) -> None:
        """Undo ``freeze``."""
        self._each(lambda process_id: os.kill(process_id, signal.SIGCONT))

    def stop(self) -> None:
        """End the server and remove its data."""
        self.kill()
        self._folder.cleanup()

    def _each(self, act: Callable[[int], None]) -> None:
        """Act on the server's first process, and on that of each connection."""
        if self._server is None:
            raise RuntimeError("the PostgreSQL server does not run")
        with contextlib.suppress(ProcessLookupError):
            act(self._server.pid)
        for child in _children_of(self._server.pid):
            with contextlib.suppress(ProcessLookupError):
                act(child)

    def _answers(self) -> bool:
        if self._server is not None and self._server.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended at start:\n{(self.folder / 'server.log').read_text()[-4000:]}")
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create(self, config: Sequence[str]) -> None:
        data, password = self.folder / "data", self.folder / "password"
        password.write_text(PASSWORD)
        for path in (self.folder, password):
            shutil.chown(path, _user())
        command = [str(binaries() / "initdb"), "-D", str(data), "-U", USER, "--pwfile", str(password), "-A", "scram-sha-256"]
        # The server syncs what it writes; that initdb does so too would only take time.
        command += ["--no-sync", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        made = subprocess.run(command, capture_output=True, text=True, preexec_fn=self._begin, cwd=self.folder, check=False)
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")
        lines = [
            f"port = {self.port}",
            "listen_addresses = '127.0.0.1'",
            f"unix_socket_directories = '{self.folder}'",
            "shared_buffers = 32MB",
            *config,
        ]
        with (data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def _encrypted(self, tls: Mapping[str, Path]) -> Iterator[str]:
        """The lines of postgresql.conf for it. The server takes no key that others could read."""
        yield "ssl = on"
        for name, setting in (("certfile", "ssl_cert_file"), ("keyfile", "ssl_key_file")):
            copy = Path(shutil.copy(tls[name], self.folder))
            copy.chmod(0o600)
            shutil.chown(copy, _user())
            yield f"{setting} = '{copy}'"

    def _begin(self) -> None:
        if os.geteuid() == 0:
            owner = pwd.getpwnam(_user())
            os.setgroups([])
            os.setgid(owner.pw_gid)
            os.setuid(owner.pw_uid)
        # After the change of user, at which the kernel forgets it.
        die_with_parent()


@cache
def _user() -> str:
    """Whose processes and files the server's are."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _children_of(parent: int) -> list[int]:
    """Its processes; whoever is not stopped could start more, so it comes first."""
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, of = entry.read_text().rpartition(")")[2].split()[:2]
            if int(of) == parent and state != "Z":
                children.append(int(entry.parent.name))
    return children
