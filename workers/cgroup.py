"""The control group that limits this worker's memory, in version 1 or 2 of the kernel's interface.

Where a group is full, the kernel kills one of its processes, or all of them (Kubernetes): the supervisor too. What counts as
used is what the kernel cannot take back: it drops the pages of files before it kills anybody, and swaps while there is swap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

#: Version 1 writes a number near this one where there is no limit.
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files of a group are called."""

    limit: str
    used: str
    swap_limit: str
    swap_used: str
    reclaimable: tuple[str, str]


_VERSION_1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.memsw.limit_in_bytes",  # these two count memory and swap together
    "memory.memsw.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_VERSION_2 = _Files("memory.max", "memory.current", "memory.swap.max", "memory.swap.current", ("inactive_file", "active_file"))


class Group:
    """A control group with a memory limit."""

    def __init__(self, folder: str, files: _Files, processes: str = "/proc") -> None:
        self.folder = folder
        self._files = files
        self._processes = processes

    @property
    def limit(self) -> int:
        """How much memory the group may use, in bytes; 0 for any amount."""
        return _limit(self._path(self._files.limit)) or 0

    def used(self, over: int) -> int:
        """How much of its memory the kernel cannot take back, in bytes; 0 where that is at most ``over``."""
        used = _number(self._path(self._files.used))
        if used <= over:
            return 0
        statistics = _table(self._path("memory.stat"))
        used -= sum(statistics.get(name, 0) for name in self._files.reclaimable)
        return used if used > over else 0

    def swap(self) -> int:
        """How much more the group may swap out, in bytes."""
        free = _table(os.path.join(self._processes, "meminfo"), unit=1024).get("SwapFree:", 0)
        limit = _limit(self._path(self._files.swap_limit))
        if not free or limit is None:
            return free
        return min(free, max(0, limit - _number(self._path(self._files.swap_used))))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def find(processes: str = "/proc", hierarchy: str = "/sys/fs/cgroup") -> Group | None:
    """The nearest group with a limit among the one that this process is in and those around it."""
    version, folder = _VERSION_2, hierarchy
    path = ""
    for line in _text(os.path.join(processes, "self", "cgroup")).splitlines():
        number, controllers, where = line.split(":", 2)
        if "memory" in controllers.split(","):
            # Where both versions are mounted, the one that has the memory controller counts.
            version, folder, path = _VERSION_1, os.path.join(hierarchy, "memory"), where
            break
        if number == "0":
            path = where
    # In a container the path may be the one outside, of which only the end of the hierarchy, its root, can be seen.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        group = Group(os.path.join(folder, *parts[:length]), version, processes)
        if group.limit:
            return group
    return None


def _limit(path: str) -> int | None:
    """The limit in a file; None where there is no such file, or no limit in it."""
    text = _text(path).strip()
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


def _number(path: str) -> int:
    """The number in a file; 0 where there is no such file."""
    return int(_text(path) or 0)


def _table(path: str, unit: int = 1) -> Mapping[str, int]:
    """The names and numbers in a file."""
    pairs = (line.split()[:2] for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) * unit for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(path: str) -> str:
    """What is in a file; nothing where there is none, because a group may be removed and most have no limit."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, PermissionError):
        return ""
