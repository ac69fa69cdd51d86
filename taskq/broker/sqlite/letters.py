"""The ready messages of a queue, looked at without claiming them: workers and other operators see them all the while.

Invariant: a letter is taken out by the transaction that finds it still there and unclaimed, together with what is published in
its place; so it is moved once, however many try.
"""

from __future__ import annotations

from collections.abc import Iterator

from taskq import liveness
from taskq.broker.sqlite.channel import FIRST, Channel
from taskq.broker.sqlite.properties import decode
from taskq.broker.sqlite.publication import publish
from taskq.errors import MessageError
from taskq.message import Message, Publication, undecodable

#: How many letters to read at once.
_PAGE = 100

# By priority and id, as the index of the ready ones has them: a page costs the same wherever it is in the queue.
_READ = """
select id, cast(properties as blob), cast(body as blob) from messages
where queue = ? and owner is null and due is null and priority = ? and id > ? and id <= ? order by id limit ?
"""
_TAKE_OUT = "delete from messages where id = ? and owner is null and due is null returning 1"


class SqliteLetters:
    """The ready messages of this queue; a handle is the id of a row."""

    def __init__(self, channel: Channel, queue: str) -> None:
        self._channel = channel
        self._database = channel.database
        self._queue = queue
        # Without a worker nobody else releases what a dead one held.
        liveness.reap(self._database, "consumer")
        ((self._youngest,),) = self._database.execute("select coalesce(max(id), 0) from messages")

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        """Each message that was there when the queue was opened, and still is, in the order in which workers would get them."""
        for priority in range(FIRST, -1, -1):
            seen = 0
            while rows := self._database.execute(_READ, (self._queue, priority, seen, self._youngest, _PAGE)):
                for number, properties, body in rows:
                    yield number, read(properties, body)
                seen = rows[-1][0]

    def move(self, handle: int, publication: Publication) -> bool:
        """Publish in place of the message, in one transaction; nothing happens where it has been taken out already."""
        with self._database.transaction():
            if taken := self._take_out(handle):
                publish(self._channel, [publication])
        return taken

    def remove(self, handle: int) -> bool:
        """Delete the message; False where it has been taken out already."""
        with self._database.transaction():
            return self._take_out(handle)

    def _take_out(self, handle: int) -> bool:
        return bool(self._database.execute(_TAKE_OUT, (handle,)))

    def close(self) -> None:
        """Nothing is held."""


def read(properties: bytes, body: bytes) -> Message:
    """The message in a row; of one whose properties can't be read, its body."""
    try:
        return decode(properties, body)
    except MessageError:
        return undecodable(body)
