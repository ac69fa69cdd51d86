"""Connections that the import of an application opens: no two children ever share one, or they read each other's answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from taskq.signature import Signature
from tests.postgres_server import Postgres
from tests.redis_server import Redis
from tests.support import Stage

APP = "tests.apps.connected:app"


class Answer(BaseHTTPRequestHandler):
    """Answers with what it is asked for, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path[1:].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def http_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def everybody_gets_their_own(stage: Stage, library: str, server: str, method: str) -> None:
    """400 tasks on four children each get the number that they asked for, and the children start in this way."""
    with stage.worker(APP, "-c", "4", IMPORT=library, SERVER=server) as worker:
        results = stage.client().send_many(Signature[int]("ask", [number]) for number in range(400))
        assert [result.get(timeout=60) for result in results] == list(range(400))
        assert len({trace["pid"] for trace in stage.traces("ask")}) > 1
        assert worker.logged("child_died") == worker.logged("task_failed") == worker.logged("connections_not_closed") == []
        named = worker.logged("inherited_connections")
        if method == "fork":
            assert named == worker.logged("start_method_changed") == []
        else:
            (line,) = named
            assert line["peers"] == [server.rpartition("@")[2].partition("/")[0]]
            assert worker.logged("start_method_changed", used="spawn")
        assert worker.stop() == 0


@pytest.mark.parametrize(("library", "method"), [("django", "fork"), ("sqlalchemy", "fork"), ("psycopg", "spawn")])
def test_a_database(sqlite_stage: Stage, postgres: Postgres, library: str, method: str) -> None:
    everybody_gets_their_own(sqlite_stage, library, postgres.url, method)


def test_redis(sqlite_stage: Stage, redis: Redis) -> None:
    everybody_gets_their_own(sqlite_stage, "redis", redis.url, "fork")


def test_http(sqlite_stage: Stage, http_url: str) -> None:
    everybody_gets_their_own(sqlite_stage, "requests", http_url, "fork")
