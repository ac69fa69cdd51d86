"""The memory guard against the kernel's own control groups, where this machine lets tests make one."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from taskq.workers.cgroup import find
from taskq.workers.memory import Excess, MemoryGuard
from tests.support import eventually

MIB = 2**20
LIMIT = 64 * MIB
#: Where groups are made and how their limit is set, in the two versions of the kernel's interface.
PLACES = [(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")]

EATER = """
import sys
held = []
for line in sys.stdin:
    kind, size = line.split()
    if kind == "memory":
        held.append(b"x" * (int(size) << 20))
    else:
        with open(sys.argv[1], "w+b") as file:
            file.write(b"x" * 1000)
            for _ in range(int(size)):
                file.write(b"x" * (1 << 20))
            file.flush()
            for _ in range(3):
                file.seek(0)
                while file.read(1 << 16):
                    pass
    print("done", flush=True)
"""


def places() -> list[tuple[Path, str]]:
    """Those that let us make a group with a limit."""
    usable = []
    for place, limit in PLACES:
        if (place / "cgroup.procs").exists():
            with suppress(OSError), a_group(place, limit):
                usable.append((place, limit))
    return usable


@contextmanager
def a_group(place: Path, limit: str) -> Iterator[Path]:
    """A new group with a limit, without processes at the end."""
    folder = place / f"taskq-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        (folder / limit).write_text(str(LIMIT))
        yield folder
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text(), "the group is empty")
        folder.rmdir()


class Eater:
    """A process in a group that takes memory, or reads a file, when it is told to."""

    def __init__(self, group: Path, file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", EATER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        (group / "cgroup.procs").write_text(str(self.process.pid))

    def eat(self, kind: str, size: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{kind} {size}\n")
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize(("place", "limit"), places())
def test_the_largest_child_is_named_before_the_kernel_kills(place: Path, limit: str, tmp_path: Path) -> None:
    with a_group(place, limit) as folder:
        top = "/sys/fs/cgroup"
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text(
            f"4:memory:/{folder.name}\n" if place.name == "memory" else f"0::/{folder.name}\n"
        )
        group = find(str(tmp_path), top)
        assert group is not None
        assert (group.folder, group.limit) == (str(folder), LIMIT)
        guard = MemoryGuard(0, group)
        eaters = [Eater(folder, tmp_path / "one"), Eater(folder, tmp_path / "other")]
        children = {index: eater.process.pid for index, eater in enumerate(eaters)}
        try:
            # So many pages of a file that is read again and again are no reason to kill anybody.
            eaters[0].eat("file", 55)
            assert int((folder / limit.replace("limit_in", "usage_in").replace("max", "current")).read_text()) > 0.9 * LIMIT
            assert guard.look(children, children, 1.0) == []
            eaters[0].eat("memory", 5)
            assert guard.look(children, children, 1.0) == []
            named: list[Excess] = []
            while not named:
                eaters[1].eat("memory", 1)
                named = guard.look(children, children, 1.0)
            (excess,) = named
            assert excess.index == 1
            assert excess.resident < LIMIT
            assert eaters[1].process.poll() is None, "the kernel was faster"
            eaters[1].end()
            assert group.used(over=int(LIMIT * 0.95)) == 0
            assert guard.look({0: os.getpid()}, [0], 1.0) == []
        finally:
            for eater in eaters:
                eater.end()
