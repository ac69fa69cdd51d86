"""A worker under the conditions that containers create: as process 1, unknown, without a home, short of memory."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskq.errors import TaskFailed
from tests.container import UNKNOWN_USER, Group, contained, first_process, stop
from tests.support import Stage, Worker, eventually

pytestmark = pytest.mark.namespaces

CONTAINED = "tests.apps.contained:app"
MIB = 2**20
#: The version of control groups that has the memory controller here: where it is mounted, how, and what its limit is called.
VERSION_1 = (Path("/sys/fs/cgroup/memory"), "-t cgroup -o memory", "memory.limit_in_bytes")
VERSION_2 = (Path("/sys/fs/cgroup"), "-t cgroup2", "memory.max")


def container(stage: Stage, group: Group | None = None, state: bool = True) -> Worker:
    """A worker in a container, with a writable folder or with none at all."""
    wanted = ("TASKQ_", "TRACES", "GATES", *(["XDG_STATE_HOME"] if state else []))
    environment = {name: value for name, value in stage.environment().items() if name.startswith(wanted)}
    command = [sys.executable, "-m", "taskq", "worker", "-A", CONTAINED, "--log-format", "json", "-Q", stage.queue, "-c", "2"]
    log = stage.folder / f"container-{uuid.uuid4().hex[:8]}.log"
    return Worker(contained(command, {"PATH": os.defpath, **environment}, [stage.folder] if state else [], group), {}, log)


def children_of(parent: int) -> dict[int, str]:
    """The children of a process, each with its state; "Z" is a zombie."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent:
            found[int(path.parent.name)] = state
    return found


def test_it_works_without_a_home_as_a_user_nobody_knows_on_a_disk_that_cannot_be_written(amqp_stage: Stage) -> None:
    amqp_stage.settings["backend"] = "rpc://"
    client = amqp_stage.client()
    with container(amqp_stage, state=False) as worker:
        worker.started()
        seen = client.send_task("look").get(timeout=15)
        assert seen == {"user": UNKNOWN_USER, "home": None, "pid": seen["pid"], "supervisor": 1}
        for path in ("/file", "/tmp/file", "file"):
            assert client.send_task("write", [path]).get(timeout=15) == "Read-only file system", path
        [note] = worker.logged("no_obituaries")
        assert "XDG_STATE_HOME" in note["error"]
        assert stop(worker) == 0
        assert "Traceback" not in worker.text


def test_without_a_home_the_default_broker_says_what_is_missing(sqlite_stage: Stage) -> None:
    environment = {"PATH": os.defpath, "TASKQ_APP": CONTAINED}
    command = contained([sys.executable, "-m", "taskq", "worker"], environment)
    with Worker(command, {}, sqlite_stage.folder / "log") as worker:
        assert worker.wait() == 1
        assert "set XDG_STATE_HOME to a folder that the user may write to" in worker.text
        assert "Traceback" not in worker.text


def test_process_1_reaps_what_tasks_leave_behind_and_ends_with_0(sqlite_stage: Stage) -> None:
    client = sqlite_stage.client()
    with container(sqlite_stage) as worker:
        worker.started()
        first = first_process(worker)
        [zygote] = children_of(first)
        assert client.send_task("abandon", [5, "first"]).get(timeout=15) == 5
        eventually(lambda: len(children_of(first)) == 6, "the orphans are with process 1")
        sqlite_stage.open_gate("first")
        eventually(lambda: children_of(first).keys() == {zygote}, "nothing is left of them")

        # The zygote's own end is not mistaken for an orphan's, and no orphan is forgotten over it.
        assert client.send_task("abandon", [5, "second"]).get(timeout=15) == 5
        os.kill(zygote, signal.SIGKILL)
        sqlite_stage.open_gate("second")
        eventually(lambda: worker.logged("zygote_died"), "its end is noticed")
        assert client.send_task("look").get(timeout=15)["supervisor"] == 1
        eventually(lambda: len(children_of(first)) == 1, "only the new one is there")

        assert client.send_task("abandon", [5, "never"]).get(timeout=15) == 5
        assert stop(worker) == 0
        assert eventually(lambda: not worker.processes(), "the orphans end with the container")
        assert len(worker.logged("worker_stopped")) == 1
        assert "Traceback" not in worker.text


def test_a_second_container_finds_what_the_first_was_running_when_it_was_killed(stage: Stage) -> None:
    """The folder is what a Kubernetes emptyDir is: it outlives the container, not the pod."""
    stage.settings["max_crashes"] = 2
    result = stage.client().send_task("hold", ["a", "never"])
    for count in (1, 2):
        with container(stage) as worker:
            stage.traced("hold", count)
            os.kill(first_process(worker), signal.SIGKILL)
            worker.wait()
    with container(stage) as worker, pytest.raises(TaskFailed, match="crashed"):
        result.get(timeout=30)
    assert len(stage.traces("hold")) == 2


@contextmanager
def memory_group(limit: int) -> Iterator[Group]:
    """A control group with so much memory."""
    place, mount, name = VERSION_1 if (VERSION_1[0] / "cgroup.procs").exists() else VERSION_2
    folder = place / f"taskq-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        (folder / name).write_text(str(limit))
        yield Group(folder, place, mount)
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text(), "the group is empty")
        folder.rmdir()


def test_a_task_that_takes_the_containers_memory_dies_alone(sqlite_stage: Stage) -> None:
    sqlite_stage.settings["max_crashes"] = 1
    client = sqlite_stage.client()
    with memory_group(300 * MIB) as group, container(sqlite_stage, group) as worker:
        worker.started()
        neighbour = client.send_task("hold", ["a", "gate"])
        sqlite_stage.traced("hold")
        greedy = client.send_task("gobble", [150, 1000])
        # The supervisor sees the container's own limit, and acts before the kernel does, which would not choose so carefully.
        with pytest.raises(TaskFailed, match="the most of all running children, while the control group"):
            greedy.get(timeout=30)
        sqlite_stage.open_gate("gate")
        assert neighbour.get(timeout=15) == "a"
        assert len(sqlite_stage.traces("hold")) == 1
        assert stop(worker) == 0
