"""How Redis is reached, and what its errors mean.

Invariant: a call ends within about a second of silence, and whatever goes wrong in it is a ``BackendError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import DataError, RedisError, ResponseError
from redis.retry import Retry

from taskq.config import masked, without_secrets
from taskq.errors import BackendError, ConfigurationError, RecordRefused

#: How many connections a process has at most, and for how many seconds a thread waits for one of them.
_CONNECTIONS, _TURN = 10, 5.0
#: Seconds without a sign of life after which a call has failed.
_SILENCE = 1.0
#: What a server takes in one piece at least, whatever its ``proto-max-bulk-len``; and at most, unless that is raised.
_SMALL, _LARGE = 1_000_000, 512 * 1024 * 1024
#: What errors say that tell what is wrong with the values, and not with the server: they would be the same the next time.
_ABOUT_VALUES = ("WRONGTYPE", "invalid bulk length", "string exceeds maximum allowed size", ": attempt to ")

T = TypeVar("T")


class Server:
    """The Redis server of a URL: a client with a small pool, safe from many threads at once and after a fork."""

    def __init__(self, url: str) -> None:
        # A connection that was idle may have been closed since, by a restart for example: one more try opens it again. All we
        # ask for may be done twice. Silence is not tried again, as that would take another second.
        again = Retry(NoBackoff(), 1, supported_errors=(ConnectionFailed,))
        try:
            pool = BlockingConnectionPool.from_url(
                _as_redis_takes_it(url),
                max_connections=_CONNECTIONS,
                timeout=_TURN,
                socket_timeout=_SILENCE,
                socket_connect_timeout=_SILENCE,
                client_name="taskq",
                retry=again,
            )
            # Made and not opened: a wrong option would be told by the first call otherwise.
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError, RedisError) as error:
            reason = without_secrets(str(error), url)
            raise ConfigurationError(f"backend={masked(url)!r} is not a URL that Redis' client takes: {reason}") from None
        self.pool = pool
        self.client: Redis = Redis(connection_pool=pool)
        options = pool.connection_kwargs
        self._url = url
        self._name = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"

    @contextmanager
    def asked(self) -> Iterator[Redis]:
        """The client, for one call; raises ``BackendError`` for whatever goes wrong in the block."""
        try:
            yield self.client
        except (RedisError, OSError, ValueError) as error:
            # A password that is not encoded may have been taken for a host or a path.
            text = without_secrets(f"the result backend, Redis at {self._name}, failed: {error}", self._url)
            raise (RecordRefused if _is_about_values(error) else BackendError)(text) from error

    def told(self, call: Callable[[], T], largest: int) -> T:
        """What the call returns, which sends values of so many bytes at most; raises ``BackendError`` and ``RecordRefused``."""
        if largest > _LARGE:
            raise RecordRefused(f"{largest:,} bytes in one piece are more than Redis takes")
        try:
            with self.asked():
                return call()
        except BackendError as error:
            if largest <= _SMALL or not isinstance(error.__cause__, ConnectionFailed):
                raise
        # A server that finds it too large hangs up before it has read it. One that is away answers nothing else either.
        try:
            with self.asked() as client:
                client.ping()
            with self.asked():
                return call()
        except BackendError as error:
            if not isinstance(error.__cause__, ConnectionFailed):
                raise
            failure = error
        with self.asked() as client:
            client.ping()
        raise RecordRefused(f"{largest:,} bytes in one piece are too much for the server: {failure}") from failure

    def close(self) -> None:
        """Close all connections, under other threads' hands too; the next call opens new ones."""
        self.pool.disconnect()


def _as_redis_takes_it(url: str) -> str:
    """The URL as redis-py takes it; Celery has other words for some of it."""
    scheme, place, path, query, _ = urlsplit(url)
    options = dict(parse_qsl(query, keep_blank_values=True))
    # What comes back is the bytes of JSON for us, whoever shares this URL.
    options.pop("decode_responses", None)
    if "virtual_host" in options:
        options["db"] = options.pop("virtual_host").strip("/")
    if scheme == "rediss":
        required = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
        options["ssl_cert_reqs"] = required
        # Older versions of redis-py look at no name in a certificate unless they are asked to.
        options.setdefault("ssl_check_hostname", str(required != "none"))
    return f"{'unix' if scheme == 'redis+socket' else scheme}://{place}{path}?{urlencode(options)}"


def milliseconds(seconds: float) -> int:
    """A time to live as Redis takes it: at least a millisecond, as zero is an error."""
    return max(1, int(seconds * 1000))


def _is_about_values(error: Exception) -> bool:
    if isinstance(error, ResponseError):
        return any(words in str(error) for words in _ABOUT_VALUES)
    return isinstance(error, DataError | ValueError)


def raw(key: str) -> bytes:
    """The key as bytes, whatever is in it."""
    return key.encode("utf-8", "surrogatepass")


def readable(text: str) -> str:
    """The text without what JSON has no word for."""
    return text.encode(errors="replace").decode()
