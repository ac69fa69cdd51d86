"""What a result backend is: where the ends of tasks are recorded, and where the members of chords are counted.

The formats are Celery's (https://docs.celeryq.dev/en/stable/internals/protocol.html), so that its clients read our results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from taskq.results.ledger import Ledger

Status = Literal["UNKNOWN", "PENDING", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "IGNORED"]
#: How long the claim on a complete chord is its holder's alone, in seconds from its last ``count``: the holder may be dead.
CLAIM_SECONDS = 10.0


class Record(msgspec.Struct, frozen=True):
    """How a task ended, or that it has started. ``meta`` is the JSON text of Celery's result format; stores carry it undecoded.

    ``attempt`` is the ordinal of the attempt that this is about, ``meta`` holds it too; a record that Celery wrote has 0.
    STARTED is no end; one that is ``lasting`` is of a task that must not run twice, and is kept until its end replaces it.
    ``reply_to`` is the queue that the caller waits at, for the backend ``rpc://``. These two tell a store what to do with the
    record: one that is fetched does not have them.
    """

    id: str
    status: Status
    meta: bytes
    attempt: int = 0
    lasting: bool = False
    reply_to: str | None = None

    @property
    def is_end(self) -> bool:
        """Whether the task has ended."""
        return self.status != "STARTED"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend's server is.

    ``ahead`` is by how many seconds its clock is ahead of ours, None where it is the same one; ``options`` are those of its
    settings that the safety of results depends on.
    """

    product: str
    version: str
    ahead: float | None = None
    options: Mapping[str, str] = {}


class Barrier(msgspec.Struct, frozen=True):
    """A chord that is about to begin: its body waits for ``size`` members."""

    chord: str
    size: int


class Part(msgspec.Struct, frozen=True):
    """A member of a chord has ended. ``result`` is the JSON text of its value, or of its failure as results describe it.

    ``index`` is its place in the header, from 0; None where the message names none.
    """

    chord: str
    index: int | None
    id: str
    status: Status
    result: bytes


class Gathering(msgspec.Struct, frozen=True):
    """How a chord stands after one of its members was counted.

    ``waiting``: members are missing, or nobody has said yet how many there are. ``complete``: all are there, in the order of
    the header, and whoever asked has the claim: it starts the body, and closes the chord. ``contested``: all are there, and
    somebody else has the claim, which ends some time after its holder: ask again. ``over``: the body has been started.

    ``shape`` is how Celery nested the header of groups, where it did: the JSON text of its ``GroupResult.as_tuple()``, with the
    ids of the members as leaves. Without one, the members' values are a flat list.
    """

    state: Literal["waiting", "complete", "contested", "over"]
    members: tuple[Part, ...] = ()
    shape: bytes | None = None


class Chords(Protocol):
    """Counts the members of chords, each of them once, however often it comes."""

    #: How long a claim lasts here.
    claim_seconds: float

    def open(self, barriers: Sequence[Barrier]) -> None:
        """The chords are about to begin. One that is open, or over, stays as it is. Raises ``BrokerError``."""

    def count(self, parts: Sequence[Part], claimant: str) -> list[Gathering]:
        """Count these, durably, one after the other; a member's first end is the one that counts.

        A member is known by its id and index. Returns how its chord stands after each of them. Whoever has the claim already
        is given it again. Raises ``BrokerError``.
        """

    def close(self, chords: Sequence[str], claimant: str) -> None:
        """What follows these chords has been started; forget their members. Only the claim's holder may do so.

        Others change nothing. Raises ``BrokerError``.
        """


class ResultStore(Protocol):
    """Keeps one record per task until its time to live is over (measured from the end of the task).

    A record replaces what stands if its attempt is no earlier one, but a beginning does not replace the end of its own attempt,
    and only a success replaces a success: a dead letter that is replayed starts anew, and the late end of an attempt that was
    given up hides nothing.
    """

    #: Counts chords; None where this backend cannot.
    chords: Chords | None
    #: Where schedulers agree; None where this backend cannot keep it.
    ledger: Ledger | None

    @property
    def reply_to(self) -> str | None:
        """The queue that results come back to, where they are kept nowhere; None where they are kept."""

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably, but for those that may not replace what stands; raises ``BrokerError`` if it can't."""

    def fetch(self, task_ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, in their order; None where there is none."""

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as there is one, or None after ``timeout`` seconds."""

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete these records."""

    def keep(self, name: str, document: bytes, ttl: float) -> None:
        """Keep a document of the caller's for ``ttl`` seconds from now; the last one of a name stands."""

    def document(self, name: str) -> bytes | None:
        """The document of this name, or None."""

    def expire(self) -> int:
        """Forget what is over its time to live; returns how many records went."""

    def condition(self) -> Condition:
        """How the server is; raises ``BrokerError``."""

    def close(self) -> None:
        """Release what the store holds open."""
