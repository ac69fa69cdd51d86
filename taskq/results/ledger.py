"""The ledger: where schedulers agree on who leads, and on which ticks have been sent. What the entries say is the schedulers'.

An entry is changed only by who knows what stands, so nobody writes over what he has not seen. Which copy of a tick may run is
decided here too: where broker and backend are two servers, nobody can send a message and write that down in one step, so a tick
whose sender died in between is sent again, and of its copies the first one that asks runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

#: How long an entry is kept after it was last written, in seconds, where nothing else is said.
LEDGER_SECONDS = 400 * 86_400.0
#: What stands for a tick that is being sent, until one of its copies asks.
UNDECIDED = b"?"


class Change(msgspec.Struct, frozen=True):
    """An entry that is ``old`` becomes ``new``; None: there is none. Where both are the same, it is only looked at.

    It is kept for ``ttl`` seconds from now.
    """

    key: str
    old: bytes | None
    new: bytes | None
    ttl: float = LEDGER_SECONDS


class Ledger(Protocol):
    """Entries under keys, changed together or not at all. Raises ``BrokerError`` where it can't be reached."""

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The entries under these keys, as far as there are any."""

    def swap(self, changes: Sequence[Change], *, durable: bool = True) -> bool:
        """Make all of these changes, or none and return False where one of the entries is not what it was said to be.

        ``durable=False``: these may be lost with a machine's power.
        """


def tick_entry(tick: str) -> str:
    """The key under which stands which copy of the tick may run."""
    return f"tick {tick}"


def may_run(ledger: Ledger, tick: str, copy: str) -> bool:
    """Whether this copy of the tick may run: the first one that asked may, for ever; the others are to be dropped."""
    key, mine = tick_entry(tick), copy.encode()
    while True:
        decided = ledger.read([key]).get(key)
        # None: it was sent once, and that was seen confirmed, so that there is no other.
        if decided is None or decided == mine:
            return True
        if decided != UNDECIDED:
            return False
        if ledger.swap([Change(key, UNDECIDED, mine)]):
            return True
