"""Control groups, laid out in files as the kernel does."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskq.workers.cgroup import find

MIB = 2**20
UNLIMITED = {1: str(2**63 - 4096), 2: "max"}
NAMES = {
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.memsw.usage_in_bytes",
        "total_",
    ),
    2: ("memory.max", "memory.current", "memory.swap.max", "memory.swap.current", ""),
}

each_version = pytest.mark.parametrize("version", [1, 2])


class Tree:
    """The files of one machine, for a process in the group ``/a/b``."""

    def __init__(self, root: Path, version: int, path: str = "/a/b") -> None:
        self.version = version
        self.processes, self.hierarchy = root / "proc", root / "cgroup"
        self.top = self.hierarchy / "memory" if version == 1 else self.hierarchy
        (self.processes / "self").mkdir(parents=True)
        lines = {1: ["5:cpu,cpuacct:/elsewhere", f"4:memory:{path}", "0::/"], 2: [f"0::{path}"]}[version]
        (self.processes / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))
        self.swap_free(0)

    def swap_free(self, kibibytes: int) -> None:
        (self.processes / "meminfo").write_text(f"MemTotal: 1000 kB\nSwapFree: {kibibytes} kB\n")

    def group(
        self, path: str, limit: str, used: int = 0, file: tuple[int, int] = (0, 0), swap: tuple[str, int] = ("0", 0)
    ) -> Path:
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        limit_name, used_name, swap_limit, swap_used, prefix = NAMES[self.version]
        (folder / limit_name).write_text(f"{limit}\n")
        (folder / used_name).write_text(f"{used}\n")
        (folder / swap_limit).write_text(f"{swap[0]}\n")
        (folder / swap_used).write_text(f"{swap[1]}\n")
        statistics = f"anon 5\n{prefix}inactive_file {file[0]}\n{prefix}active_file {file[1]}\n"
        (folder / "memory.stat").write_text(statistics)
        return folder


@each_version
def test_the_nearest_limit_counts(tmp_path: Path, version: int) -> None:
    tree = Tree(tmp_path, version)
    tree.group("", "9000")
    outer = tree.group("a", "3000")
    tree.group("a/b", UNLIMITED[version])
    group = find(str(tree.processes), str(tree.hierarchy))
    assert group is not None
    assert (group.folder, group.limit) == (str(outer), 3000)


@each_version
def test_without_a_limit_there_is_no_group(tmp_path: Path, version: int) -> None:
    tree = Tree(tmp_path, version)
    assert find(str(tree.processes), str(tree.hierarchy)) is None
    tree.group("a/b", UNLIMITED[version])
    assert find(str(tree.processes), str(tree.hierarchy)) is None
    assert find(str(tmp_path / "nowhere"), str(tree.hierarchy)) is None


@each_version
@pytest.mark.parametrize("path", ["/", "/docker/4711", "/../../kubepods/pod"])
def test_in_a_container_the_root_of_the_hierarchy_is_its_group(tmp_path: Path, version: int, path: str) -> None:
    tree = Tree(tmp_path, version, path)
    folder = tree.group("", "3000")
    group = find(str(tree.processes), str(tree.hierarchy))
    assert group is not None
    assert group.folder == str(folder)


@each_version
def test_pages_of_files_do_not_count_as_used(tmp_path: Path, version: int) -> None:
    tree = Tree(tmp_path, version)
    tree.group("a/b", str(100 * MIB), used=99 * MIB, file=(20 * MIB, 30 * MIB))
    group = find(str(tree.processes), str(tree.hierarchy))
    assert group is not None
    assert group.used(over=0) == 49 * MIB
    assert group.used(over=48 * MIB) == 49 * MIB
    assert group.used(over=49 * MIB) == 0
    assert group.used(over=99 * MIB) == 0


@each_version
def test_swap_is_what_the_machine_has_and_the_group_may_use(tmp_path: Path, version: int) -> None:
    tree = Tree(tmp_path, version)
    tree.group("a/b", str(100 * MIB), swap=(UNLIMITED[version], 0))
    group = find(str(tree.processes), str(tree.hierarchy))
    assert group is not None
    assert group.swap() == 0
    tree.swap_free(50 * 1024)
    assert group.swap() == 50 * MIB
    tree.group("a/b", str(100 * MIB), swap=(str(30 * MIB), 10 * MIB))
    assert group.swap() == 20 * MIB
    tree.group("a/b", str(100 * MIB), swap=("0", 0))
    assert group.swap() == 0


def test_a_group_that_is_gone_uses_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2)
    folder = tree.group("a/b", "3000", used=2999)
    group = find(str(tree.processes), str(tree.hierarchy))
    assert group is not None
    for file in folder.iterdir():
        file.unlink()
    assert (group.limit, group.used(over=0)) == (0, 0)
