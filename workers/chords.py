"""What settling does of chords: it opens those that begin, counts members that have ended, and closes what is over.

Without a backend that counts, no chord is opened, and every one is over: whoever sends a chord there is refused (``TaskQ``).
"""

from __future__ import annotations

from collections.abc import Sequence

from taskq import log
from taskq.launch import Member
from taskq.results.store import Barrier, Gathering, ResultStore
from taskq.workers.outcome import Flow, Outcome

logger = log.get_logger("taskq.settle")


def open_chords(store: ResultStore | None, barriers: Sequence[Barrier]) -> None:
    """These are about to begin. Raises as ``Chords.open``."""
    if not barriers:
        return
    if store is None or store.chords is None:
        logger.error("chords_not_counted", chords=[barrier.chord for barrier in barriers])
    else:
        store.chords.open(barriers)


def count(store: ResultStore, members: Sequence[Member], claimant: str) -> list[Gathering]:
    """These have ended; returns how the chord of each stands. Raises as ``Chords.count``."""
    if not members or store.chords is None:
        return [Gathering("over")] * len(members)
    return store.chords.count([member.part for member in members], claimant)


def close_chords(store: ResultStore | None, members: Sequence[Member], claimant: str) -> None:
    """What follows the chords of these has taken effect. Raises as ``Chords.close``."""
    if members and store is not None and store.chords is not None:
        store.chords.close([member.part.chord for member in members], claimant)


def ask_again(member: Member) -> Outcome:
    """The outcome that counts the member once more, for how its chord stands then."""
    return Outcome("gathered", flow=Flow(members=(member,)))
