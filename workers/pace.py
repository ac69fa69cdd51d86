"""Pace: how many deliveries to hold, so that short tasks flow in batches and nothing waits behind a long one.

Each child is given about ``AHEAD`` seconds of work, as the tasks of late have taken, and never more than one task of unknown
length. A child whose task has run for ``STUCK`` seconds gives the rest back.
"""

from __future__ import annotations

AHEAD = 0.05
STUCK = 0.1
#: Up to which size each change of the window matters.
SMALL = 16
_WEIGHT = 0.05


class Pace:
    """Knows how long tasks take here, from those that ended. ``most`` bounds the depth."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._average = AHEAD

    def observe(self, seconds: float) -> None:
        """A task took so long."""
        self._average += _WEIGHT * (seconds - self._average)

    @property
    def depth(self) -> int:
        """How many deliveries a child is given at most."""
        return max(1, min(self.most, int(AHEAD / max(self._average, 1e-6))))


def worth_a_change(current: int, wanted: int) -> bool:
    """Whether the broker should be told of a new window: a change costs something, so small ones wait.

    Not where tasks are long and the window is small: one delivery too many would wait for a slot that another worker has.
    """
    small = wanted < current <= SMALL
    return wanted != current and (small or wanted == 0 or current == 0 or wanted >= 2 * current or 2 * wanted <= current)
