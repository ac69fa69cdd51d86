"""The backend ``rpc://``: a result goes back as a message to the process that sent the call, and is had there alone.

Nothing is kept anywhere else. So another process cannot ask for it, and chords cannot be counted. The messages are Celery's:
our workers reply to Celery's clients, and Celery's workers to ours.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol, cast, get_args

import msgspec

from taskq import log
from taskq.decoding import UNREADABLE
from taskq.errors import MessageError, UnsupportedFeature
from taskq.message import Message, Publication
from taskq.results.ledger import Ledger
from taskq.results.store import Chords, Condition, Leave, Record, Status
from taskq.serialization import decode

#: How many results that nobody has asked for are kept, the latest; and of those that somebody has.
MOST_UNREAD = 100_000
MOST_READ = 1_000

logger = log.get_logger("taskq.results")

_STATUSES = frozenset(get_args(Status)) - {"PENDING"}


class ReplyQueue(Protocol):
    """A queue that is being read."""

    name: str

    def close(self) -> None:
        """Read no more, and delete it."""


#: Opens a queue of this process' own, and has the function called with the task id and the body of each reply.
OpenReplies = Callable[[Callable[[str, bytes], None]], ReplyQueue]


def reply(record: Record) -> Publication | None:
    """The message that tells the caller of this record; None where nobody waits for one."""
    if not record.reply_to:
        return None
    return Publication(record.reply_to, Message(headers={}, body=record.meta, correlation_id=record.id), reply=True)


class _Meta(msgspec.Struct):
    """What there is to know about a reply."""

    status: str
    attempt: int = 0


def _record(task_id: str, body: bytes) -> Record | None:
    """What a reply says; None if that is nothing that we know, since anybody may write to the queue."""
    try:
        # Read as Python writes it, since Celery's NaN and Infinity are no JSON.
        meta = msgspec.convert(decode(body), _Meta)
    except (MessageError, *UNREADABLE):
        return None
    # Celery's workers also tell of what is neither a beginning nor an end.
    return Record(task_id, cast(Status, meta.status), body, meta.attempt) if meta.status in _STATUSES else None


class _Inbox:
    """The replies that have come, the oldest first to go where there are too many of them."""

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.overflowed = False
        self.unread: dict[str, tuple[float, Record]] = {}
        self.read: dict[str, tuple[float, Record]] = {}

    def put(self, record: Record, now: float) -> bool:
        """Keep it, unless it may not replace what stands; whether it is kept."""
        standing = self.peek(record.id, now)
        if standing is not None and not _replaces(record, standing):
            return False
        (self.read if record.id in self.read else self.unread)[record.id] = now, record
        if len(self.unread) > MOST_UNREAD and not self.overflowed:
            self.overflowed = True
            logger.warning("replies_forgotten", kept=MOST_UNREAD, hint="ask for results, or send with ignore_result")
        _shorten(self.unread, MOST_UNREAD, now - self.ttl)
        return True

    def peek(self, task_id: str, now: float) -> Record | None:
        """What stands."""
        came, record = self.unread.get(task_id) or self.read.get(task_id) or (0.0, None)
        return record if came + self.ttl > now else None

    def get(self, task_id: str, now: float) -> Record | None:
        """What stands; an end may be forgotten after that."""
        record = self.peek(task_id, now)
        if record is not None and record.is_end and task_id in self.unread:
            del self.unread[task_id]
            self.read[task_id] = now, record
            _shorten(self.read, MOST_READ, now - self.ttl)
        return record

    def forget(self, task_id: str) -> None:
        """It need not be kept."""
        self.unread.pop(task_id, None)
        self.read.pop(task_id, None)


def _shorten(kept: dict[str, tuple[float, Record]], most: int, since: float) -> None:
    while kept:
        oldest = next(iter(kept))
        if len(kept) <= most and kept[oldest][0] > since:
            return
        del kept[oldest]


def _replaces(record: Record, standing: Record) -> bool:
    """The promise of ``ResultStore``."""
    return (
        record.attempt >= standing.attempt
        and (record.is_end or not standing.is_end or record.attempt > standing.attempt)
        and (record.status == "SUCCESS" or standing.status != "SUCCESS")
    )


class RpcResults:
    """The results of this process' calls, as they come. Safe for many threads; a forked child has a queue of its own."""

    chords: Chords | None = None
    ledger: Ledger | None = None

    def __init__(self, open_replies: OpenReplies, ttl: float) -> None:
        self._open_replies = open_replies
        self._ttl = ttl
        self._inherited: list[object] = []
        self._begin()
        _stores.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._replies: ReplyQueue | None = None
        self._inbox = _Inbox(self._ttl)
        self._waiters: dict[str, list[threading.Event]] = {}
        self._documents: dict[str, tuple[float, bytes]] = {}

    @property
    def reply_to(self) -> str:
        """The queue that calls have to name for their replies, open and read; raises ``BrokerUnreachable``."""
        with self._opening:
            if self._replies is None:
                self._replies = self._open_replies(self._take)
            return self._replies.name

    def store(self, records: Sequence[Record]) -> None:
        """Refused: a worker sends what ``reply`` makes of a record, together with the other messages that follow a task."""
        raise UnsupportedFeature(f"rpc:// keeps no records; {len(records)} have to go to their callers as messages")

    def begin(self, records: Sequence[Record]) -> list[Leave]:
        """Refused: nothing is kept that could be compared; raises ``UnsupportedFeature``."""
        raise UnsupportedFeature(f"rpc:// keeps no records, so nobody knows whether these {len(records)} tasks have begun")

    def release(self, records: Sequence[Record]) -> None:
        """Refused, as ``begin`` is; raises ``UnsupportedFeature``."""
        self.begin(records)

    def replace(self, changes: Sequence[tuple[Record, bytes]]) -> list[bool]:
        """Refused, as ``begin`` is; raises ``UnsupportedFeature``."""
        self.begin([record for record, _ in changes])
        return []

    def fetch(self, task_ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids that have come; raises ``UnsupportedFeature`` where none can."""
        self._check()
        now = time.monotonic()
        with self._lock:
            return [self._inbox.get(task_id, now) for task_id in task_ids]

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as it comes, or None after ``timeout`` seconds; raises as ``fetch``."""
        self._check()
        came = threading.Event()
        give_up = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._waiters.setdefault(task_id, []).append(came)
        try:
            while True:
                came.clear()
                [record] = self.fetch([task_id])
                if record is not None and record.is_end:
                    return record
                if not came.wait(None if give_up is None else max(0.0, give_up - time.monotonic())):
                    return None
        finally:
            with self._lock:
                self._waiters[task_id].remove(came)
                if not self._waiters[task_id]:
                    del self._waiters[task_id]

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete these records."""
        with self._lock:
            for task_id in task_ids:
                self._inbox.forget(task_id)

    def keep(self, name: str, document: bytes, ttl: float) -> None:
        """Keep a document in this process, for it alone."""
        with self._lock:
            self._documents.pop(name, None)
            self._documents[name] = time.monotonic() + ttl, document
            if len(self._documents) > MOST_READ:
                del self._documents[next(iter(self._documents))]

    def document(self, name: str) -> bytes | None:
        """The document of this name, or None."""
        with self._lock:
            expires, document = self._documents.get(name, (0.0, b""))
        return document if expires > time.monotonic() else None

    def condition(self) -> Condition:
        """Nothing is kept, so that there is nothing to know."""
        return Condition(product="reply queues", version="")

    def expire(self) -> bool:
        """Forget what is over its time to live."""
        since = time.monotonic() - self._ttl
        with self._lock:
            _shorten(self._inbox.unread, MOST_UNREAD, since)
            _shorten(self._inbox.read, MOST_READ, since)
        return False

    def close(self) -> None:
        """Delete the queue; replies that are under way are lost."""
        with self._opening:
            replies, self._replies = self._replies, None
        with self._lock:
            for waiter in itertools.chain(*self._waiters.values()):
                waiter.set()
        if replies is not None:
            replies.close()

    def after_fork_in_child(self) -> None:
        """The parent's queue and its connection are the parent's."""
        self._inherited.append(self._replies)
        self._begin()

    def _check(self) -> None:
        if self._replies is None:
            raise UnsupportedFeature(
                "with backend='rpc://' a result comes back to the process that sent the call, and to no other; this one has "
                "sent none. A backend that keeps results is asked from anywhere: redis://, postgresql://, sqlite:///…"
            )

    def _take(self, task_id: str, body: bytes) -> None:
        record = _record(task_id, body)
        if record is None:
            return
        with self._lock:
            if self._inbox.put(record, time.monotonic()):
                for waiter in self._waiters.get(task_id, ()):
                    waiter.set()


_stores: weakref.WeakSet[RpcResults] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in _stores:
        store.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
