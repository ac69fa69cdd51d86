"""Connections that the import of an application leaves open: processes forked after it would read each other's answers there.

They are found by what the kernel says of this process's descriptors, so it doesn't matter who opened them. Those whose owner is
known to open another when it needs one can be closed.
"""

from __future__ import annotations

import gc
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taskq import log

_DESCRIPTORS = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
#: Kinds of sockets that carry answers. A datagram, such as a line for syslog, is whole or not there, whoever sends it.
_CONVERSATIONS = frozenset({socket.SOCK_STREAM, socket.SOCK_SEQPACKET})

logger = log.get_logger("taskq.connections")
# gevent and eventlet replace it by one that belongs to their loops.
_Socket = socket.socket


def connected() -> Mapping[tuple[int, int], str]:
    """The other end of each connected socket of this process, by what identifies the socket to the kernel."""
    found = {}
    timeout = socket.getdefaulttimeout()
    # With a timeout, a socket object makes what it is made of non-blocking, for its owner too.
    socket.setdefaulttimeout(None)
    try:
        for name in os.listdir(_DESCRIPTORS):
            try:
                about = os.fstat(int(name))
            except OSError:  # the one that the list was read from
                continue
            if stat.S_ISSOCK(about.st_mode) and (peer := _peer(int(name))):
                found[about.st_dev, about.st_ino] = peer
    finally:
        socket.setdefaulttimeout(timeout)
    return found


def _peer(descriptor: int) -> str:
    """The other end of the socket; empty where it has none, or is of a kind that carries no answers."""
    with _Socket(fileno=os.dup(descriptor)) as other:
        if other.type not in _CONVERSATIONS:
            return ""
        try:
            address = other.getpeername()
        except OSError:
            return ""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return (os.fsdecode(address) if isinstance(address, str | bytes) else str(address)) or "a socket pair of this process"


def close_known() -> None:
    """Close the connections of libraries that open others when they need them: Django, SQLAlchemy, redis-py, urllib3.

    To be called while no other process shares them, because a server is told of it.
    """
    for module, close in _KNOWN.items():
        if module in sys.modules:
            try:
                close(sys.modules[module])
            except Exception as error:  # noqa: BLE001  # the library's own; what it leaves open is found by who looks again
                logger.warning("connections_not_closed", library=module, error=repr(error))


def _close_django(database: Any) -> None:
    database.connections.close_all()
    if (cache := sys.modules.get("django.core.cache")) is not None:
        cache.close_caches()


def _close_sqlalchemy(engines: Any) -> None:
    for engine in _instances(engines.Engine):
        # A database in memory would be gone with its connection, and none is a socket.
        if engine.dialect.name != "sqlite":
            engine.dispose()


def _close_redis(connections: Any) -> None:
    for pool in _instances(connections.ConnectionPool):
        pool.disconnect()


def _close_urllib3(managers: Any) -> None:
    for manager in _instances(managers.PoolManager):
        manager.clear()


def _instances(wanted: type) -> Iterator[Any]:
    # By their type: isinstance would ask a lazy object for its class, which evaluates it.
    return (found for found in gc.get_objects() if issubclass(type(found), wanted))


_KNOWN: Mapping[str, Callable[[Any], None]] = {
    "django.db": _close_django,
    "sqlalchemy.engine.base": _close_sqlalchemy,
    "redis.connection": _close_redis,
    "urllib3.poolmanager": _close_urllib3,
}
