"""The rate: how many tasks end here in a second, of late. Kept by the loop, out of what ``vitals`` counts."""

from __future__ import annotations

from collections import deque

from taskq.workers.vitals import OTHER, Vitals

#: Over how long "of late" goes back, in seconds, and how far apart its marks are.
SPAN = 60.0
STEP = 5.0
#: What is no end of a task: its message was only passed on.
_PASSED_ON = frozenset({"given back", "delayed", "dropped"})


def counts(vitals: Vitals) -> dict[str, int]:
    """How many tasks of each name have ended."""
    tallies = {**vitals.tallies, OTHER: vitals.other}
    ends = {name: sum(n for event, n in tally.outcomes.items() if event not in _PASSED_ON) for name, tally in tallies.items()}
    return {name: count for name, count in ends.items() if count}


def finished(vitals: Vitals) -> int:
    """How many tasks have ended."""
    return sum(counts(vitals).values())


class Rate:
    """Moments are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        self._mark_at = now + STEP

    def mark(self, now: float, vitals: Vitals) -> None:
        """A turn of the loop."""
        if now >= self._mark_at:
            self._mark_at = now + STEP
            self._marks.append((now, finished(vitals)))
            while len(self._marks) > 1 and self._marks[1][0] <= now - SPAN:
                self._marks.popleft()

    def rate(self, now: float, vitals: Vitals) -> float:
        """Tasks a second over the last minute, or since the beginning."""
        self.mark(now, vitals)
        since, before = self._marks[0]
        return (finished(vitals) - before) / max(now - since, 1e-3)
