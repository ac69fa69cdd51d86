"""What a worker leaves behind for whoever gets its messages next."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from taskq.workers.note import Note, Terms
from taskq.workers.obituary import KEPT, Register

WORKER = """
import subprocess, sys
from pathlib import Path
from taskq.workers.obituary import Register
register = Register(8, Path(sys.argv[1]))
descriptor = register.descriptor
subprocess.run([sys.executable, "-c", sys.argv[2], str(descriptor)], pass_fds=(descriptor,))
"""
CHILD = """
import signal, sys
from taskq.workers.note import Note, Terms
busy, idle = (Note(int(sys.argv[1]), index) for index in range(2))
busy.begin(3, 1.0), busy.agree(Terms("busy"))
idle.begin(4, 1.0), idle.agree(Terms("idle")), idle.end()
print("ready", flush=True)
signal.pause()
"""


def test_whoever_is_killed_leaves_word_of_what_it_ran(tmp_path: Path) -> None:
    living = Register(8, tmp_path)
    other = Note(living.descriptor, 0)
    other.begin(1, 1.0)
    other.agree(Terms("living"))
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path), CHILD], stdout=subprocess.PIPE, start_new_session=True
    ) as dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == b"ready\n"
        register = Register(8, tmp_path)
        assert not register.begun("busy"), "it lives"
        dying.kill()
        dying.wait()
        # Its child, which holds the notes open too, need not be dead yet.
        assert register.begun("busy")
        assert not register.begun("busy"), "one death counts once"
        assert not Register(8, tmp_path).begun("busy"), "for others too"
        assert not register.begun("idle")
        assert not register.begun("living")
        os.killpg(dying.pid, 9)


def test_whoever_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    register = Register(8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    register.close()
    assert list(tmp_path.iterdir()) == []


def test_old_obituaries_are_forgotten_but_not_those_of_the_living(tmp_path: Path) -> None:
    (tmp_path / "dead.notes").write_bytes(b"")
    living = Register(8, tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, (0, time.time() - KEPT - 60))
    Register(8, tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [living._path.name]


def test_a_folder_that_cannot_be_written_costs_only_the_obituary(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    register = Register(8, tmp_path / "file" / "workers")
    note = Note(register.descriptor, 7)
    assert note.begin(1, 1.0)
    assert not register.begun("x")
    register.close()


def test_junk_among_the_notes_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "folder.notes").mkdir()
    os.mkfifo(tmp_path / "pipe.notes")
    (tmp_path / "link.notes").symlink_to("/dev/zero")
    (tmp_path / "loop.notes").symlink_to(tmp_path / "loop.notes")
    (tmp_path / "junk.notes").write_bytes(os.urandom(4096))
    (tmp_path / "short.notes").write_bytes(b"\xff")
    register = Register(2, tmp_path)
    assert register.trouble == ""
    assert not register.begun("x")
    assert register.begun_of(["x", "y"]) == set()
    register.close()


NEW_WORKERS = """
import sys
from pathlib import Path
from taskq.workers.obituary import Register
for _ in range(int(sys.argv[2])):
    register = Register(1, Path(sys.argv[1]))
    assert not register.trouble, register.trouble
    assert register._path.exists(), "somebody took it for a dead one's"
    register.close()
"""


def test_a_worker_that_starts_is_never_taken_for_dead(tmp_path: Path) -> None:
    register = Register(1, tmp_path)
    note = Note(register.descriptor, 0)
    note.begin(1, 1.0)
    note.agree(Terms("mine"))
    with subprocess.Popen([sys.executable, "-c", NEW_WORKERS, str(tmp_path), "400"]) as starting:
        while starting.poll() is None:
            assert not register.begun("mine")
    assert starting.returncode == 0
    register.close()


def test_who_is_told_of_many_at_once_is_told_of_each_once(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from taskq.workers.note import Note, Terms;"
        "from taskq.workers.obituary import Register; register = Register(3, Path(sys.argv[1]));\n"
        "for index in range(3):\n"
        "    note = Note(register.descriptor, index); note.begin(1, 1.0); note.agree(Terms(f'task {index}'))\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    register = Register(1, tmp_path)
    assert register.begun_of(f"task {number}" for number in range(1, 1000)) == {"task 1", "task 2"}
    assert register.begun_of(["task 0", "task 1"]) == {"task 0"}
    register.close()
