"""The ledger in Redis, under ``taskq-ledger-<key>``. A change is one script, so one step for everybody else.

It is as durable as the server: one that loses its last second with the machine's power, as with ``appendfsync everysec``,
forgets which ticks were sent in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskq.results.ledger import Change
from taskq.results.redis.connection import Server, milliseconds

PREFIX = "taskq-ledger-"

# For each key: whether there is an entry and which, whether there will be one and which, and for how many milliseconds.
_SWAP = """
for i, key in ipairs(KEYS) do
    local standing = redis.call('GET', key)
    if ARGV[5 * i - 4] == '' and standing or ARGV[5 * i - 4] ~= '' and standing ~= ARGV[5 * i - 3] then
        return 0
    end
end
for i, key in ipairs(KEYS) do
    if ARGV[5 * i - 2] == '' then
        redis.call('DEL', key)
    else
        redis.call('SET', key, ARGV[5 * i - 1], 'PX', ARGV[5 * i])
    end
end
return 1
"""


class RedisLedger:
    """The entries on this server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._swap = server.client.register_script(_SWAP)

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The entries under these keys; raises ``BackendError``."""
        if not keys:
            return {}
        with self._server.asked() as client:
            entries: Any = client.mget([PREFIX + key for key in keys])
        return {key: bytes(entry) for key, entry in zip(keys, entries, strict=True) if entry is not None}

    def swap(self, changes: Sequence[Change], *, durable: bool = True) -> bool:  # noqa: ARG002  # the server decides
        """Make all of these changes, or none; raises ``BackendError``."""
        arguments: list[Any] = []
        for change in changes:
            for entry in (change.old, change.new):
                arguments += ["" if entry is None else "1", entry or b""]
            arguments.append(milliseconds(change.ttl))
        with self._server.asked():
            return bool(self._swap([PREFIX + change.key for change in changes], arguments))
