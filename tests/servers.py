"""Private servers for tests: each with its own ports, data folder and cookie, and none outlives the test process.

A test that needs a server fails where the server is not installed; it is never skipped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

#: The system that RabbitMQ is taken from: this one, or a folder that holds another with another version, where we are root.
SYSTEM = Path(os.environ.get("TEST_RABBITMQ_SYSTEM", "/")).absolute()
#: The server in that system. Debian's /usr/sbin/rabbitmq-server would switch to the user rabbitmq.
SERVER = Path(os.environ.get("TEST_RABBITMQ", "/usr/lib/rabbitmq/bin/rabbitmq-server"))
#: How to run a command in another system, which needs to see its processes and disks; what is mounted goes with it.
_ENTER = ("unshare", "--mount", "sh", "-c", 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"')
START_TIMEOUT = 60.0
PR_SET_PDEATHSIG = 1
#: The kernel ties a process to the thread that starts it, so that thread has to live as long as the tests.
spawner = ThreadPoolExecutor(1, "servers")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return as soon as the condition holds; fail after ``timeout`` seconds, saying what was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.01)


def freeze(process_id: int) -> None:
    """SIGSTOP, until no thread of the process runs any more: on a busy machine one may go on for long enough to answer."""
    os.kill(process_id, signal.SIGSTOP)
    wait_until(lambda: _is_stopped(process_id), 10.0, f"process {process_id} has stopped")


def _is_stopped(process_id: int) -> bool:
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path("/proc").glob(f"{process_id}/task/*/stat")]
    return set(states) <= {"T", "Z"}


@contextmanager
def running_node(*config: str, rabbit: str = "", **environment: str) -> Iterator[RabbitMQ]:
    """A private RabbitMQ node that runs for the length of the block; the arguments are those of ``RabbitMQ``."""
    node = RabbitMQ(config, rabbit=rabbit, environment=environment)
    try:
        yield node.start()
    finally:
        node.stop()


class RabbitMQ:
    """A private RabbitMQ node. ``config`` holds extra lines of rabbitmq.conf, ``tls`` the certificate files of amqps.

    ``rabbit`` holds parameters that only advanced.config has, as Erlang terms, ``environment`` extra variables.

    ``restart`` after ``kill`` keeps data and ports, so that a test sees what a broker that came back would show.
    """

    def __init__(
        self,
        config: Sequence[str] = (),
        tls: Mapping[str, Path] | None = None,
        *,
        rabbit: str = "",
        environment: Mapping[str, str] | None = None,
        frugal: bool = True,
    ) -> None:
        if not (SYSTEM / SERVER.relative_to("/")).exists():
            raise RuntimeError(f"{SERVER} is missing in {SYSTEM}: install RabbitMQ with `apt-get install rabbitmq-server`")
        # One scheduler and no busy waiting: the tests share few cores with the server. Not for measuring.
        self._arguments = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -start_epmd false" if frugal else "-start_epmd false"
        another = Path("/") != SYSTEM
        self._folder = tempfile.TemporaryDirectory(prefix="rabbitmq-", dir=SYSTEM / "tmp" if another else None)
        self.folder = Path(self._folder.name)
        self._enter = [*_ENTER, str(SYSTEM)] if another else []
        self._own_folder = f"/tmp/{self.folder.name}" if another else str(self.folder)
        self.port = free_port()
        self.tls_port = free_port()
        self._epmd_port = free_port()
        self._distribution_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._extra = dict(environment or {})
        self._has_tls = tls is not None
        self._write_files(config, tls, rabbit)

    @property
    def url(self) -> str:
        """The URL of the node's default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def pid(self) -> int:
        """The process that is the server itself (the Erlang machine)."""
        if self._server is None:
            raise RuntimeError("the RabbitMQ node does not run")
        return self._server.pid

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> RabbitMQ:
        """Start the node and wait until it speaks AMQP."""
        if self._epmd is None:
            self._epmd = self._spawn(["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"], "epmd.log")
        # RUNNING_UNDER_SYSTEMD makes the script exec the Erlang machine, so that our child is the server, not a shell.
        self._server = self._spawn([str(SERVER)], "server.log", RUNNING_UNDER_SYSTEMD="true")
        wait_until(self._answers, START_TIMEOUT, f"RabbitMQ answers on port {self.port}")
        return self

    def kill(self) -> None:
        """SIGKILL: the server ends without a chance to save or to say goodbye."""
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            server.wait()

    def restart(self) -> None:
        """Kill the node if it runs, and start it on the same data and ports."""
        self.kill()
        self.start()

    def sync(self) -> None:
        """Write to disk which quorum queues there are.

        RabbitMQ 3.10 does so seconds after they are declared: a queue that is younger when the server is killed is lost with
        all its messages, confirmed or not.
        """
        self.control("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")

    def freeze(self) -> None:
        """Connections stay open, nothing is answered."""
        freeze(self.pid)

    def thaw(self) -> None:
        """Undo ``freeze``."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the node and remove its data."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        self._folder.cleanup()

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node; returns what it prints."""
        command = [*self._enter, str(SERVER.with_name("rabbitmqctl")), *arguments]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _answers(self) -> bool:
        if self.pid and self._server is not None and self._server.poll() is not None:
            raise RuntimeError(f"RabbitMQ ended at start:\n{(self.folder / 'server.log').read_text()[-4000:]}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                answered = client.recv(1) == b"\x01"
            if self._has_tls:
                socket.create_connection(("127.0.0.1", self.tls_port), timeout=1).close()
        except OSError:
            return False
        return answered

    def _write_files(self, config: Sequence[str], tls: Mapping[str, Path] | None, rabbit: str) -> None:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "log.console = true",
            "log.console.level = warning",
            "log.file = false",
            "disk_free_limit.absolute = 1MB",
            "vm_memory_high_watermark.relative = 0.9",
            *config,
        ]
        if tls is not None:
            lines.append(f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}")
            for name, path in tls.items():
                (self.folder / name).write_bytes(path.read_bytes())
                lines.append(f"ssl_options.{name} = {self._own_folder}/{name}")
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        # What a level of the delays could not pass on while the node started is tried again after this time, three minutes
        # by default.
        terms = ", ".join(filter(None, ["{dead_letter_worker_publisher_confirm_timeout, 1000}", rabbit]))
        advanced = f"[{{rabbit, [{terms}]}}]."
        (self.folder / "advanced.config").write_text(advanced + "\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("taskqtests")
        cookie.chmod(0o400)

    def _environment(self, **extra: str) -> dict[str, str]:
        folder = self._own_folder
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "taskqtests@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": self._arguments,
            **self._extra,
            **extra,
        }

    def _spawn(self, command: Sequence[str], log: str, **extra: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            return spawner.submit(
                subprocess.Popen,
                [*self._enter, *command],
                cwd=self.folder,
                env=self._environment(**extra),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            ).result()


def die_with_parent() -> None:
    """The kernel kills this process when the test process dies, however it dies."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
