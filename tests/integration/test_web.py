"""The web server of the probes, against clients that behave and clients that do not."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.errors import ConfigurationError
from taskq.workers import web
from taskq.workers.web import LARGEST_REQUEST, MOST_CONNECTIONS, Answer, Server
from tests.support import PATIENCE

LARGE = b"x" * 8_000_000


def answer(path: str) -> Answer:
    match path:
        case "/":
            return Answer(200, b"here\n")
        case "/large":
            return Answer(200, LARGE)
        case "/broken":
            raise ValueError(path)
    return Answer(404, b"not here\n")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("127.0.0.1", 0, answer)
    server.start()
    yield server
    server.stop()
    assert "taskq-http" not in {thread.name for thread in threading.enumerate()}


def ask(server: Server, path: str = "/", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def raw(server: Server, *parts: bytes) -> bytes:
    """What comes back for these bytes, sent one after the other."""
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            client.sendall(part)
        return b"".join(iter(lambda: client.recv(65_536), b""))


def test_the_answers(server: Server) -> None:
    assert ask(server) == (200, b"here\n")
    assert ask(server, "/?verbose=1") == (200, b"here\n")
    assert ask(server, "/elsewhere")[0] == 404
    assert ask(server, method="HEAD") == (200, b"")
    assert ask(server, method="POST")[0] == 405
    assert ask(server, "/large") == (200, LARGE)


def test_an_answer_that_fails_is_an_error_and_the_next_one_comes(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(server, "/broken")[0] == 500
    assert ask(server)[0] == 200
    assert "ValueError" in caplog.text


def test_a_request_byte_by_byte_and_one_that_is_none(server: Server) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw(server, *[request[index : index + 1] for index in range(len(request))]).endswith(b"here\n")
    assert raw(server, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    for nonsense in (b"\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n", b"GET /\r\n\r\n", b"GET / SPDY/3\r\n\r\n"):
        assert raw(server, nonsense).startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET / HTTP/1.1\r\nX: ".ljust(LARGEST_REQUEST, b"x")).startswith(b"HTTP/1.1 431 ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200) | st.just(b"GET / HTTP/1.1\r\n") | st.just(b"\r\n\r\n"), max_size=4), st.booleans())
def test_whatever_somebody_sends_the_next_one_is_answered(server: Server, parts: list[bytes], reset: bool) -> None:
    client = socket.create_connection((server.host, server.port), timeout=PATIENCE)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(ConnectionError), client:
        for part in parts:
            client.sendall(part)
    assert ask(server) == (200, b"here\n")


def test_whoever_says_nothing_keeps_nobody_out(server: Server) -> None:
    silent = [socket.create_connection((server.host, server.port), timeout=PATIENCE) for _ in range(2 * MOST_CONNECTIONS)]
    started = time.monotonic()
    assert ask(server)[0] == 200
    assert time.monotonic() - started < web.LONGEST
    assert select.select([silent[0]], [], [], PATIENCE)[0], "the oldest is dropped"
    for client in silent:
        client.close()


def test_whoever_is_slow_is_dropped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LONGEST", 0.2)
    started = time.monotonic()
    assert raw(server, b"GET / HT") == b""
    assert 0.1 < time.monotonic() - started < PATIENCE


def test_a_port_that_is_taken_is_said(server: Server) -> None:
    with pytest.raises(ConfigurationError, match=f"port {server.port}: Address already in use"):
        Server(server.host, server.port, answer)


def test_it_stops_with_clients_connected() -> None:
    server = Server("127.0.0.1", 0, answer)
    server.start()
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        assert ask(server)[0] == 200
        server.stop()
        assert client.recv(1) == b""
