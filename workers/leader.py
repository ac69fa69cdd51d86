"""Leadership: of all schedulers of an application, one leads, and who leads stands in the ledger.

The leader renews its entry every ``RENEW`` seconds. One whose entry has not changed for ``LEASE`` seconds, by the clock of
whoever looks, has ended or hangs, and is replaced. The entry is the fence: whatever the leader writes into the ledger, it
writes on the condition that the entry is still its own, so a leader that wakes up after it was replaced changes nothing.

Here is also known since when the schedules have been attended to without a gap; see ``taskq.schedule.due``.
"""

from __future__ import annotations

import uuid

import msgspec

from taskq import log
from taskq.decoding import decoded
from taskq.errors import MessageError
from taskq.results.ledger import Change, Ledger

#: How often the leader renews its entry, and the others look at it, in seconds.
RENEW = 1.0
#: How long an entry may stay the same before its leader is replaced, in seconds.
LEASE = 4.0
#: An entry this old is a dead leader's, however much clocks differ: nobody need watch it first. In seconds.
STALE = 60.0
#: For how long nobody may attend to the schedules before that counts as a gap, in seconds: a change of leaders is none.
GAP = 10.0

logger = log.get_logger("taskq.scheduler")


class Lease(msgspec.Struct, frozen=True):
    """The leader's entry. ``holder`` is empty once the leader has resigned. Moments are in seconds since the epoch."""

    holder: str
    renewed: float
    attended: float


_decode = msgspec.json.Decoder(Lease).decode


def _lease(standing: bytes) -> Lease | None:
    """The lease that stands; None for what cannot be read, which nobody holds."""
    try:
        return decoded(_decode, standing, "the lease of the schedules")
    except MessageError as error:
        logger.warning("scheduler_lease_unreadable", error=str(error))
        return None


class Leadership:
    """One scheduler's part in it. ``now`` is in seconds since the epoch, ``clock`` in monotonic seconds."""

    def __init__(self, app: str, worker: str, now: float) -> None:
        self._key = f"leader {app}"
        # Unlike the worker's name, this is never anybody else's again.
        self._holder = f"{worker} {uuid.uuid4()}"
        #: Since when the schedules have been attended to without a gap.
        self.attended = now
        self._attended_until = now
        self._held: bytes | None = None
        self._renew_at = 0.0
        self._seen: bytes | None = None
        self._seen_at = 0.0

    @property
    def fence(self) -> Change | None:
        """What has to stand for this scheduler to lead; None where it does not."""
        return Change(self._key, self._held, self._held) if self._held is not None else None

    def notice(self, now: float) -> None:
        """A turn begins. If the last one that succeeded is too long ago, or the clock was set, attendance begins anew."""
        if now - self._attended_until > GAP:
            logger.warning("schedules_unattended", seconds=round(now - self._attended_until, 3))
            self.attended = now
        self.attended = min(self.attended, now)

    def attended_until(self, now: float) -> None:
        """Everything that was due at this moment has been dealt with, by this scheduler or by the leader."""
        self._attended_until = now

    def doubt(self) -> None:
        """Have the next look ask whether this scheduler still leads."""
        self._renew_at = 0.0

    def look(self, ledger: Ledger, now: float, clock: float) -> bool:
        """Whether this scheduler leads: it renews, or takes over where nobody does. Raises ``BrokerError``."""
        if self._held is not None:
            if clock < self._renew_at or self._write(ledger, self._held, Lease(self._holder, now, self.attended), clock):
                return True
            self._held = None
        standing = ledger.read([self._key]).get(self._key)
        lease = None if standing is None else _lease(standing)
        if lease is not None and self._is_alive(lease, standing, now, clock):
            return False
        attended = self.attended if lease is None else self._inherited(lease, now)
        if not self._write(ledger, standing, Lease(self._holder, now, attended), clock):
            return False
        self.attended = attended
        logger.info("scheduler_leads", holder=self._holder, instead_of=lease.holder if lease is not None else None)
        return True

    def resign(self, ledger: Ledger, now: float) -> None:
        """Let another one lead at once. Raises ``BrokerError``."""
        held, self._held = self._held, None
        if held is not None:
            ledger.swap([Change(self._key, held, msgspec.json.encode(Lease("", now, self.attended)))], durable=False)

    def _write(self, ledger: Ledger, old: bytes | None, lease: Lease, clock: float) -> bool:
        new = msgspec.json.encode(lease)
        if not ledger.swap([Change(self._key, old, new)], durable=False):
            return False
        self._held, self._renew_at = new, clock + RENEW
        return True

    def _is_alive(self, lease: Lease, standing: bytes | None, now: float, clock: float) -> bool:
        """Whether the lease's holder is to be left alone, as far as this scheduler has seen."""
        if lease.holder in ("", self._holder) or abs(now - lease.renewed) > STALE:
            return False
        if standing != self._seen:
            self._seen, self._seen_at = standing, clock
        return clock - self._seen_at < LEASE

    def _inherited(self, lease: Lease, now: float) -> float:
        """Since when there has been no gap, if this scheduler takes over from the one that wrote the lease.

        It was up itself when that one was last heard of, or takes over so soon after that this was a change of leaders.
        """
        seamless = self.attended <= lease.renewed or (lease.holder and 0.0 <= now - lease.renewed <= GAP)
        # A moment before all others would be too early to be one for a calendar.
        return max(0.0, min(lease.attended, self.attended)) if seamless else self.attended
