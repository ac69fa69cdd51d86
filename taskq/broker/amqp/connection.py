"""Opening and closing connections to RabbitMQ: URL, TLS, socket options, and the deadline over the whole handshake."""

from __future__ import annotations

import math
import os
import socket
import ssl
import sys
import time
from typing import Any

from amqp.exceptions import AMQPError
from kombu import Connection as Client
from kombu.utils.url import parse_url

from taskq.broker.amqp.topology import refusal
from taskq.broker.amqp.transport import Connection, TlsTransport, Transport
from taskq.config import Settings, masked, without_secrets
from taskq.errors import BrokerUnreachable

#: What a broken connection or channel raises, from py-amqp, from the socket and from TLS.
BROKEN = (AMQPError, OSError)
CLOSE_TIMEOUT = 1.0
#: Parameters of an amqps URL, as Kombu and Celery name them.
_TLS_PARAMETERS = {
    "ssl_ca_certs": "ca_certs",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "ssl_cert_reqs": "cert_reqs",
}


def connect(settings: Settings, *, timeout: float, heartbeat: float, silence: float, name: str) -> Connection:
    """A connection after its handshake; the deadline, ``timeout`` seconds from now, stays set.

    It is kept, except by the system's name service. ``silence`` is how many seconds a peer may leave sent bytes
    unacknowledged, ``name`` is shown by the broker. Raises ``BrokerUnreachable``.
    """
    tls = settings.broker.startswith("amqps:")
    options: dict[str, Any] = {"socket_settings": {}, "client_properties": {"connection_name": f"taskq {name} {os.getpid()}"}}
    if sys.platform == "linux":
        options["socket_settings"] = {socket.TCP_USER_TIMEOUT: int(silence * 1000)}
    try:
        client = Client(
            settings.broker.partition("?")[0],
            transport=TlsTransport if tls else Transport,
            ssl=_tls_options(settings.broker) if tls else False,
            connect_timeout=timeout,
            heartbeat=math.ceil(heartbeat),  # whole seconds on the wire, where 0 means none
            transport_options={"deadline": time.monotonic() + timeout, **options},
        )
        connection: Connection = client.transport.establish_connection()
    except ValueError as error:
        # The URL cannot be read, and the error quotes from it.
        reason = without_secrets(str(error), settings.broker)
        raise BrokerUnreachable(
            f"cannot reach {masked(settings.broker)}: {reason}; write '/', '@', ':' and the like in a password as '%2F', …"
        ) from None
    except BROKEN as error:
        cause = refusal(error, settings)
        if isinstance(cause, BrokerUnreachable):
            raise cause from error
        raise BrokerUnreachable(f"cannot reach {masked(settings.broker)}: {_reason(error, timeout)}") from error
    else:
        return connection


def close(connection: Connection) -> None:
    """Say goodbye and wait shortly for the answer: a socket closed with unread data would throw away acks on their way."""
    connection.deadline = time.monotonic() + CLOSE_TIMEOUT
    try:
        connection.close()
    except BROKEN:
        connection.collect()


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:.3g} s"
    return str(error) or type(error).__name__


def _tls_options(url: str) -> dict[str, Any]:
    """The certificate is checked against the system's authorities and the URL's host, unless the URL says otherwise."""
    parts = parse_url(url)
    given = {_TLS_PARAMETERS[name]: value for name, value in parts.get("ssl", {}).items() if name in _TLS_PARAMETERS}
    if parts.get("ssl", {}).get("ssl_check_hostname", True) and given.get("cert_reqs") != ssl.CERT_NONE:
        given["server_hostname"] = parts["hostname"]
    return given
