"""Fixtures that several folders of tests share."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import kombu
import pytest

from taskq.message import dead_letter_queue
from tests import container
from tests.postgres_server import Postgres, running_postgres
from tests.redis_server import Redis, running_redis
from tests.servers import RabbitMQ, running_node
from tests.support import Stage

# How long an example takes says what else the machine does: pytest-timeout ends what hangs.
hypothesis.settings.register_profile("taskq", deadline=None)
hypothesis.settings.load_profile("taskq")


def pytest_configure() -> None:
    """Let Ctrl-C through to what the tests start, where a shell has put ``make test`` into the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports are text that xdist can send: one lone surrogate in a log that was captured ends the process of the tests."""
    report = yield
    report.sections = [(name, _carried(text)) for name, text in report.sections]
    if report.longrepr is not None and _carried(told := report.longreprtext) != told:
        report.longrepr = _carried(told)
    return report


def _carried(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot show."""
    out = [item for item in items if item.get_closest_marker("namespaces")]
    if out and container.lacking():
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so."""
    if lacking := container.lacking():
        terminalreporter.write_line(f"left out: tests of units and containers, which need {lacking}")


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """The private RabbitMQ node of this test run."""
    with running_node() as node:
        yield node


@pytest.fixture(scope="session")
def node_to_kill() -> Iterator[RabbitMQ]:
    """The node of ``killable_rabbitmq``."""
    with running_node() as node:
        yield node


@pytest.fixture
def killable_rabbitmq(node_to_kill: RabbitMQ) -> RabbitMQ:
    """A node for tests that kill it: it has few queues, each of which takes part in every start. It runs when a test begins."""
    return node_to_kill if node_to_kill.runs else node_to_kill.start()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The private PostgreSQL server of this test run."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """The private Redis server of this test run."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a server called localhost, and of the authority that vouches for it."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=taskq test authority", "-days", "2")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName = DNS:localhost")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *sign)
    return {"cacertfile": folder / "ca.pem", "certfile": folder / "server.pem", "keyfile": folder / "server.key"}


@pytest.fixture
def queue() -> str:
    """A queue that no other test uses."""
    return f"test.{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["sqlite", "amqp"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a broker, once for each kind."""
    return url_of(request, tmp_path, request.param)


def url_of(request: pytest.FixtureRequest, folder: Path, kind: str) -> str:
    """The URL of a fresh SQLite file, or of the RabbitMQ node, which is started only for tests that ask for it."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/taskq.db"
    node: RabbitMQ = request.getfixturevalue("rabbitmq")
    return node.url


@pytest.fixture
def stage(broker_url: str, queue: str, tmp_path: Path) -> Iterator[Stage]:
    """A broker of each kind, with a queue and a folder of one's own."""
    yield from staged(Stage(broker_url, queue, tmp_path))


@pytest.fixture
def sqlite_stage(queue: str, tmp_path: Path) -> Iterator[Stage]:
    """The same on SQLite alone."""
    yield from staged(Stage(f"sqlite:///{tmp_path}/taskq.db", queue, tmp_path))


@pytest.fixture
def amqp_stage(rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Iterator[Stage]:
    """The same on RabbitMQ alone."""
    yield from staged(Stage(rabbitmq.url, queue, tmp_path))


@pytest.fixture
def killable_stage(killable_rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Iterator[Stage]:
    """The same on the node that may be killed, with clients that soon give up. The node has to run again at the end."""
    yield from staged(Stage(killable_rabbitmq.url, queue, tmp_path, {"publish_timeout": 2.0}))


def staged(stage: Stage) -> Iterator[Stage]:
    """Lend the stage out, and clear it."""
    try:
        yield stage
    finally:
        stage.close()
        if stage.broker.startswith("amqp:"):
            with kombu.Connection(stage.broker) as connection, connection.channel() as channel:
                for name in (stage.queue, dead_letter_queue(stage.queue)):
                    channel.queue_delete(name)
