"""What a result backend is: where the ends of tasks are recorded, and where the members of chords are counted.

The formats are Celery's (https://docs.celeryq.dev/en/stable/internals/protocol.html), so that its clients read our results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from taskq.decoding import decoded
from taskq.results.ledger import Ledger

Status = Literal["UNKNOWN", "PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "IGNORED"]
#: What whoever asks to begin a task that runs at most once is told: it may; another run of it has begun; it has ended.
Leave = Literal["granted", "taken", "over"]
#: How long the claim on a complete chord is its holder's alone, in seconds from its last ``count``: the holder may be dead.
CLAIM_SECONDS = 10.0
#: How long the members of a chord are kept that have ended, in seconds from the last one: the others may be delayed for months.
CHORD_SECONDS = 400 * 86_400.0
#: For how many seconds at most one call of ``expire`` goes on, with a little for the statement that is under way then.
EXPIRE_SECONDS = 0.01


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a task ended, or that it has started, or is to run again; ``meta`` is the JSON text of Celery's result format.

    Stores carry it undecoded. ``attempt`` is the ordinal of the attempt that this is about, ``meta`` holds it too; a record
    that Celery wrote has 0. STARTED and RETRY are no ends; a STARTED that is ``lasting`` is of a task that must not run twice,
    and is kept until its end replaces it. ``reply_to`` is the queue that the caller waits at, for the backend ``rpc://``.

    Of a task that runs at most once, ``run`` names the run that this was written by, which is the name of its worker. What
    others write of the task, that it is lost for example, names none. ``round`` is ``Message.round``: the task may begin once
    in each. ``meta`` holds both too, unless they are the defaults.

    What comes after ``attempt`` tells a store what to do with the record: one that is fetched does not have it.
    """

    id: str
    status: Status
    meta: bytes
    attempt: int = 0
    lasting: bool = False
    reply_to: str | None = None
    round: int = 0
    run: str | None = None

    @property
    def is_end(self) -> bool:
        """Whether the task has ended."""
        return self.status not in ("STARTED", "RETRY")

    def described(self) -> dict[str, Any]:
        """What the record says, in plain JSON values; raises ``MessageError`` for what somebody else has written."""
        return decoded(_decode, self.meta, f"the result of {self.id}")


_decode = msgspec.json.Decoder(dict[str, Any]).decode


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
    #: How long it is known which members have ended, from the last one on. That a chord is over is known as long as results.
    keep_seconds: float

    def open(self, barriers: Sequence[Barrier]) -> None:
        """The chords are about to begin. One that is open, or over, stays as it is. Raises ``BrokerError``."""

    def count(self, parts: Sequence[Part], claimant: str) -> list[Gathering]:
        """Count these, durably, one after the other; a member's first end is the one that counts.

        A member is known by its id and index. Returns how its chord stands after each of them. Whoever has the claim already
        is given it again. Raises as ``ResultStore.store``.
        """

    def close(self, chords: Sequence[str], claimant: str) -> None:
        """What follows these chords has been started; forget their members. Only the claim's holder may do so.

        Others change nothing. Raises ``BrokerError``.
        """


class ResultStore(Protocol):
    """Keeps one record per task until its time to live is over (measured from the end of the task).

    A record replaces what stands if its attempt is no earlier one, but what is no end does not replace the end of its own
    attempt, and only a success replaces a success: a dead letter that is replayed starts anew, and the late end of an attempt
    that was given up hides nothing.

    Of a task that runs at most once, the run that has begun has the last word in its round: its end replaces whatever others
    have written meanwhile, who believed it lost, and is replaced by nobody else.

    Ids may be any text. All calls raise ``BrokerError`` and nothing else: ``passing`` where another try is worth it.
    """

    #: Counts chords; None where this backend cannot.
    chords: Chords | None
    #: Where schedulers agree; None where this backend cannot keep it.
    ledger: Ledger | None

    @property
    def reply_to(self) -> str | None:
        """The queue that results come back to, where they are kept nowhere; None where they are kept."""

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably, but for those that may not replace what stands; raises ``BrokerError`` if it can't.

        ``RecordRefused``: one of them is such that it will never be kept, which one is found by storing them one by one. The
        transaction that this is a part of, if any, can go on.
        """

    def begin(self, records: Sequence[Record]) -> list[Leave]:
        """Keep these beginnings durably, each only if its task has not begun in this round; returns which may begin.

        Each names its ``run``, and one that has leave has it again when it asks again. ``taken``: another run has begun, and
        its end is not known yet. Whose task has succeeded in an earlier round is ``over`` too. Raises as ``store``.
        """

    def release(self, records: Sequence[Record]) -> None:
        """These had leave to begin, and it is certain that they have not and will not: others may. Raises ``BrokerError``."""

    def replace(self, changes: Sequence[tuple[Record, bytes]]) -> list[bool]:
        """Durably give these beginnings, as they were fetched, this ``meta`` instead: those that nobody has changed meanwhile.

        Returns for each whether it was done; no id may come twice. Raises as ``store``.
        """

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

    def expire(self) -> bool:
        """Forget some of what is over its time to live, for about ``EXPIRE_SECONDS``; returns whether there may be more.

        It waits for nobody else's transaction. Any thread may call it.
        """

    def condition(self) -> Condition:
        """How the server is; raises ``BrokerError``."""

    def close(self) -> None:
        """Release what the store holds open."""
