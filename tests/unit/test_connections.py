"""Connections of this process, as the kernel sees them."""

from __future__ import annotations

import os
import socket

from taskq.connections import connected


def peers(*sockets: socket.socket) -> list[str]:
    found = connected()
    about = [os.fstat(one.fileno()) for one in sockets]
    return [found.get((one.st_dev, one.st_ino), "") for one in about]


def test_only_connected_conversations_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        datagrams.connect(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert peers(server, datagrams, client) == ["", "", f"127.0.0.1:{port}"]


def test_a_pair_and_a_copy() -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket(fileno=os.dup(one.fileno())) as copy:
        assert set(peers(one, other, copy)) == {"a socket pair of this process"}
        assert peers(one) == peers(copy)


def test_looking_leaves_sockets_as_they_are() -> None:
    one, other = socket.socketpair()
    with one, other:
        socket.setdefaulttimeout(0.5)
        try:
            connected()
            assert socket.getdefaulttimeout() == 0.5
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(one.fileno())
