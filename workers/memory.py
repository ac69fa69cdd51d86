"""The memory of the children: who of them must be killed, before the kernel kills somebody else.

Decides and kills nobody. Two limits hold: one for each child while it runs a task, and that of the control group which the
worker is in. Invariant: a child that was named is not named again while its death may still be under way, and no other is
named in the group's cause as long, because what it frees may be enough.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from taskq.workers.cgroup import Group

#: How often to look, in seconds, while there is a limit.
LOOK_SECONDS = 0.1
#: How long a killed child may take to end and to free its memory, in seconds.
DEATH_SECONDS = 2.0
#: Which part of its limit a control group may use.
GROUP_SHARE = 0.95

_MEBIBYTE = 2**20
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Excess:
    """The child in this slot must be killed: it has ``resident`` bytes, over or beside the ``limit``; ``why`` in words."""

    index: int
    resident: int
    limit: int
    why: str


class MemoryGuard:
    """Watches the children against ``memory_limit`` (bytes for each, 0: none) and the limit of the control group."""

    def __init__(self, memory_limit: int, group: Group | None) -> None:
        self.memory_limit = memory_limit
        self._group = group
        self._named: dict[int, float] = {}

    @property
    def interval(self) -> float | None:
        """How often to look, in seconds; None where nothing is limited."""
        return LOOK_SECONDS if self.memory_limit or self._group else None

    def look(self, children: Mapping[int, int], running: Collection[int], now: float) -> list[Excess]:
        """Which of the ``children`` (slot to process id) must be killed; only the ``running`` slots are considered."""
        dying = {pid: since for pid, since in self._named.items() if pid in children.values() and now - since < DEATH_SECONDS}
        self._named = dying
        candidates = {index: resident(children[index]) for index in running if children.get(index, 0) not in {0, *dying}}
        found = [_over_own_limit(index, size, self.memory_limit) for index, size in candidates.items() if self._too_big(size)]
        if self._group is not None and candidates and not found and not dying:
            found = _largest_of_full_group(self._group, candidates)
        for excess in found:
            self._named[children[excess.index]] = now
        return found

    def _too_big(self, size: int) -> bool:
        return 0 < self.memory_limit < size


def _over_own_limit(index: int, size: int, limit: int) -> Excess:
    return Excess(index, size, limit, f"{_mebibytes(size)} resident, over memory_limit={_mebibytes(limit)}")


def _largest_of_full_group(group: Group, candidates: Mapping[int, int]) -> list[Excess]:
    """The largest child, where its group is about to be full."""
    limit = group.limit
    used = group.used(over=int(limit * GROUP_SHARE)) if limit else 0
    if not used or group.swap() > limit * (1 - GROUP_SHARE):
        return []
    index = max(candidates, key=lambda index: candidates[index])
    size = candidates[index]
    why = (
        f"{_mebibytes(size)} resident, the most of all running children, while the control group {group.folder} "
        f"used {_mebibytes(used)} of its {_mebibytes(limit)}"
    )
    return [Excess(index, size, limit, why)]


def _mebibytes(size: int) -> str:
    return f"{size / _MEBIBYTE:.0f} MiB"


def resident(process_id: int) -> int:
    """How much memory the process has in RAM, in bytes; 0 where it is gone."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{process_id}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE
        except (FileNotFoundError, ProcessLookupError):
            return 0
    listed = subprocess.run(["/bin/ps", "-o", "rss=", "-p", str(process_id)], capture_output=True, text=True, check=False)
    return int(listed.stdout.strip() or 0) * 1024
