"""Silence: for how long a zygote has left it open whether a child was started, or how one ended.

Only the zygote can know that. One that somebody has stopped, or that hangs, says nothing, while its children go on or die.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

Z = TypeVar("Z")

#: For how long a zygote may say nothing although it should, in seconds.
SILENT_SECONDS = 10.0
#: How late a look may be, in seconds; a later one shows that this process was stopped too, and the time begins anew.
LATE_SECONDS = 5.0


class Silence(Generic[Z]):
    """Watches over zygotes. ``due`` is when to look again, None while nothing is open."""

    def __init__(self) -> None:
        self._since: dict[Z, float] = {}
        self._looked_at = 0.0

    @property
    def due(self) -> float | None:
        """When to look again, or None."""
        return min((since + SILENT_SECONDS for since in self._since.values()), default=None)

    def heard(self, zygote: Z) -> None:
        """The zygote has said something, whatever it was: it works."""
        self._since.pop(zygote, None)

    def look(self, owing: Collection[Z], now: float) -> list[Z]:
        """Which of the zygotes that owe a word have owed it for too long; to be called every few seconds."""
        late, self._looked_at = now > self._looked_at + LATE_SECONDS, now
        self._since = {zygote: now if late else self._since.get(zygote, now) for zygote in owing}
        silent = [zygote for zygote, since in self._since.items() if now - since >= SILENT_SECONDS]
        for zygote in silent:
            del self._since[zygote]
        return silent
