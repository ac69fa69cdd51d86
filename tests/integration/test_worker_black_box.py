"""The black box: where a child stood is known after its death, also when it hung or crashed in C code."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from taskq.workers import note
from taskq.workers.launcher import Launcher
from taskq.workers.slot import Slot
from taskq.workers.zygote import Exited, Ready, Started
from tests.support import PATIENCE, Stage, consuming, eventually

STUCK = "tests.apps.stuck:app"
T = TypeVar("T", Ready, Started, Exited)


def heard(launcher: Launcher, kind: type[T]) -> T:
    """The next report of this kind."""
    deadline = time.monotonic() + PATIENCE
    while select.select([launcher], [], [], max(0.0, deadline - time.monotonic()))[0]:
        for report in launcher.reports():
            if isinstance(report, kind):
                return report
        assert not launcher.lost
    raise AssertionError(f"no {kind.__name__} within {PATIENCE:g} s")


@contextmanager
def child_with(stage: Stage, task: str, *args: Any, start_method: str = "fork") -> Iterator[tuple[Launcher, Slot]]:
    """A zygote and its one child, which has been given this task."""
    notes = note.create(1)
    launcher = Launcher(STUCK, f'{{"start_method": "{start_method}"}}', notes, "the worker")
    slot = Slot(0, note.Note(notes, 0))
    stage.client().send_task(task, list(args))
    with consuming(stage.effective(), stage.queue) as hold:
        try:
            (delivery,) = hold.receive(1)
            heard(launcher, Ready)
            slot.open(launcher, *launcher.start_child(0))
            slot.process_id = heard(launcher, Started).process_id
            slot.give(1, delivery)
            assert slot.flush()
            yield launcher, slot
        finally:
            slot.kill()
            slot.hang_up()
            launcher.close(PATIENCE)
            os.close(notes)


@pytest.fixture(autouse=True)
def environment(sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher starts processes in this process's environment."""
    for name, value in sqlite_stage.environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.parametrize("where", ["loop", "regex", "sleep"])
def test_a_hanging_child_says_where_it_is(sqlite_stage: Stage, where: str, start_method: str) -> None:
    with child_with(sqlite_stage, "hang", where, start_method=start_method) as (launcher, slot):
        sqlite_stage.traced("hang")
        assert slot.black_box() == ""
        eventually(lambda: "in hang" in dumped(slot), "the child has written where it is", 5.0)
        text = slot.black_box()
        assert "(most recent call first)" in text
        slot.kill()
        assert os.WTERMSIG(heard(launcher, Exited).status) == signal.SIGKILL
        assert slot.black_box().startswith(text)


def test_a_child_that_crashes_in_c_leaves_its_stack(sqlite_stage: Stage) -> None:
    with child_with(sqlite_stage, "crash") as (launcher, slot):
        assert os.WTERMSIG(heard(launcher, Exited).status) == signal.SIGSEGV
        assert "Segmentation fault" in slot.black_box()
        assert "in crash" in slot.black_box()
        slot.hang_up()
        assert slot.black_box() == ""


def test_a_process_that_a_task_forks_does_not_write_into_the_box(sqlite_stage: Stage) -> None:
    with child_with(sqlite_stage, "crash_in_fork") as (launcher, slot):
        assert os.WTERMSIG(heard(launcher, Exited).status) == signal.SIGABRT
        assert "Aborted" in slot.black_box()
        assert "Segmentation fault" not in slot.black_box()


def test_an_application_s_own_faulthandler_is_left_alone(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OWN_FAULTHANDLER", "yes")
    with child_with(sqlite_stage, "crash") as (launcher, slot):
        heard(launcher, Exited)
        assert slot.black_box() == ""
        assert "Segmentation fault" in capfd.readouterr().err


def test_children_leave_no_descriptors_behind(sqlite_stage: Stage) -> None:
    with child_with(sqlite_stage, "crash") as (launcher, slot):
        heard(launcher, Exited)
        slot.hang_up()
        before = descriptors_of(os.getpid()), descriptors_of(launcher.process.pid)
        for _ in range(5):
            slot.open(launcher, *launcher.start_child(0))
            slot.process_id = heard(launcher, Started).process_id
            slot.hang_up()
            heard(launcher, Exited)
        assert (descriptors_of(os.getpid()), descriptors_of(launcher.process.pid)) == before


def dumped(slot: Slot) -> str:
    """What is in the box, after another request."""
    slot.dump()
    return slot.black_box()


def descriptors_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))
