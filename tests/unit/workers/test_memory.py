"""Which child must be killed for its memory."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.workers.cgroup import Group, find
from taskq.workers.memory import DEATH_SECONDS, LOOK_SECONDS, MemoryGuard, resident
from tests.unit.workers.test_cgroup import MIB, Tree

#: This process, which is large, and its slot.
LARGE = {3: os.getpid()}


@pytest.fixture
def small() -> Iterator[dict[int, int]]:
    """A small process in a slot."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield {1: process.pid}
        process.kill()


def full_group(folder: Path, used: int) -> tuple[Tree, Group]:
    tree = Tree(folder, 2)
    tree.group("a/b", str(100 * MIB), used=used)
    group = find(str(tree.processes), str(tree.hierarchy))
    assert group is not None
    return tree, group


def test_the_resident_set_is_that_of_the_process(small: dict[int, int]) -> None:
    before = resident(os.getpid())
    # Fresh pages of the kernel's: the allocator would hand out again what an earlier test has freed but not returned.
    with mmap.mmap(-1, 32 * MIB) as held:
        held.write(b"x" * (32 * MIB))
        assert before + 30 * MIB < resident(os.getpid())
    assert 0 < resident(small[1]) < 16 * MIB


def test_a_process_that_has_ended_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert resident(process.pid) == 0, "not even before it is reaped"
    assert resident(process.pid) == 0


def test_nothing_is_watched_where_nothing_is_limited(tmp_path: Path) -> None:
    assert MemoryGuard(0, None).interval is None
    assert MemoryGuard(0, None).look(LARGE, [3], 1.0) == []
    assert MemoryGuard(5, None).interval == LOOK_SECONDS
    assert MemoryGuard(0, full_group(tmp_path, 0)[1]).interval == LOOK_SECONDS


def test_a_child_over_its_limit_is_named_while_it_runs_a_task(small: dict[int, int]) -> None:
    guard = MemoryGuard(16 * MIB, None)
    children = {**LARGE, **small, 5: 0}
    assert guard.look(children, [1, 5], 1.0) == []
    (excess,) = guard.look(children, [1, 3, 5], 1.0)
    assert (excess.index, excess.limit) == (3, 16 * MIB)
    assert excess.resident > 16 * MIB
    assert "MiB resident, over memory_limit=16 MiB" in excess.why


def test_a_child_is_not_named_again_while_it_dies() -> None:
    guard = MemoryGuard(MIB, None)
    assert len(guard.look(LARGE, [3], 1.0)) == 1
    assert guard.look(LARGE, [3], 1.0 + DEATH_SECONDS / 2) == []
    assert len(guard.look(LARGE, [3], 1.0 + DEATH_SECONDS)) == 1, "the kill did not take effect"


def test_in_a_full_group_the_largest_running_child_is_named(tmp_path: Path, small: dict[int, int]) -> None:
    tree, group = full_group(tmp_path, used=94 * MIB)
    guard = MemoryGuard(0, group)
    children = {**LARGE, **small}
    assert guard.look(children, [1, 3], 1.0) == []
    tree.group("a/b", str(100 * MIB), used=96 * MIB)
    assert guard.look(children, [], 1.1) == []
    (excess,) = guard.look(children, [1, 3], 1.2)
    assert (excess.index, excess.limit) == (3, 100 * MIB)
    assert "used 96 MiB of its 100 MiB" in excess.why


def test_the_next_one_waits_for_what_the_first_frees(tmp_path: Path, small: dict[int, int]) -> None:
    _, group = full_group(tmp_path, used=96 * MIB)
    guard = MemoryGuard(0, group)
    assert [excess.index for excess in guard.look({**LARGE, **small}, [1, 3], 1.0)] == [3]
    assert guard.look({**LARGE, **small}, [1, 3], 1.1) == []
    assert [excess.index for excess in guard.look(small, [1], 1.2)] == [1], "it is dead, and that was not enough"


def test_one_over_its_own_limit_may_be_enough_for_the_group(tmp_path: Path, small: dict[int, int]) -> None:
    _, group = full_group(tmp_path, used=96 * MIB)
    guard = MemoryGuard(16 * MIB, group)
    (excess,) = guard.look({**LARGE, **small}, [1, 3], 1.0)
    assert excess.limit == 16 * MIB
    assert guard.look({**LARGE, **small}, [1, 3], 1.1) == []


def test_a_group_that_can_swap_is_not_full(tmp_path: Path) -> None:
    tree, group = full_group(tmp_path, used=99 * MIB)
    tree.group("a/b", str(100 * MIB), used=99 * MIB, swap=("max", 0))
    tree.swap_free(6 * 1024)
    assert MemoryGuard(0, group).look(LARGE, [3], 1.0) == []
    tree.swap_free(4 * 1024)
    assert len(MemoryGuard(0, group).look(LARGE, [3], 1.0)) == 1
