"""Obituaries: what a worker was running when it died, for whoever gets its messages next.

The notes of a worker's children (``note``) are kept in a file in the user's state directory, which outlives the worker
whatever kills it. A lock on the file says that the worker lives. Who is handed a message that nobody gave back looks it up in
the files of the dead: found there, the message had begun, and that run counts should the message turn out to be poison.

Only the workers of one machine know of each other in this way. A message that is not found may have begun elsewhere: it is
suspected all the same, and it is given the benefit of the doubt.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskq.config import state_database
from taskq.errors import ConfigurationError
from taskq.files import FILE, make_folder
from taskq.workers import note

#: For how long the file of a dead worker is kept, in seconds.
KEPT = 86_400.0
#: How much is read of a file, in bytes: more than any worker has notes.
_MOST_BYTES = 1 << 20


class Register:
    """The notes of one worker, for its children, and those of the dead.

    ``descriptor`` is what the children inherit. Where there is no state directory, or it can't be written, the notes are in
    memory alone, and nobody learns what this worker was running.
    """

    def __init__(self, slots: int, folder: Path | None = None) -> None:
        self._folder: Path | None = None
        #: Why there is none, in words; empty if there is one.
        self.trouble = ""
        self._dead: dict[Path, frozenset[str]] = {}
        self._lock = -1
        try:
            self._folder = folder or state_database().parent / "workers"
            self._path = self._folder / f"{uuid.uuid4().hex}.notes"
            make_folder(self._folder)
            # Under another name until it is locked: an unlocked one is a dead worker's, to be read and removed by anybody.
            unlocked = self._path.with_suffix(".new")
            self.descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE)
            # Opened anew: a lock belongs to the opening, and the children, who inherit the other, must not keep it.
            self._lock = os.open(unlocked, os.O_RDWR)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self.descriptor, slots * note.SIZE)
            unlocked.rename(self._path)
        except (OSError, ConfigurationError) as error:
            self.trouble = str(error)
            self.descriptor = note.create(slots)
        self._forget_old()

    def begun(self, task_id: str) -> bool:
        """Whether a worker that died on this machine was running the task at that moment. Each death is told of once."""
        return bool(self.begun_of([task_id]))

    def begun_of(self, task_ids: Iterable[str]) -> set[str]:
        """Which of these tasks had begun, as ``begun`` says; the files of the workers are looked at once for all of them."""
        for path in self._all():
            if path not in self._dead and (tasks := _last_tasks(path)) is not None:
                self._dead[path] = frozenset(tasks)
        asked = set(task_ids)
        return {task for path, tasks in self._dead.items() for task in tasks & asked if _tell(path, task)}

    def close(self) -> None:
        """The worker ends in order, and leaves nothing behind."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def _all(self) -> Iterable[Path]:
        """The files of all workers of this user, the living and the dead."""
        return () if self._folder is None else self._folder.glob("*.notes")

    def _forget_old(self) -> None:
        unfinished = () if self._folder is None else self._folder.glob("*.new")
        for path in (*self._all(), *unfinished):
            with suppress(OSError):  # another worker was faster, or somebody has put it there who may
                if time.time() - path.stat().st_mtime > KEPT and _last_tasks(path) is not None:
                    path.unlink()


def _last_tasks(path: Path) -> dict[str, int] | None:
    """What the worker of this file was running when it died, and where that is noted; None if it lives."""
    with _if_dead(path) as descriptor:
        if descriptor is None:
            return None
        tasks = note.running(os.pread(descriptor, _MOST_BYTES, 0))
        if not tasks:
            # Nobody will ever ask for it.
            with suppress(OSError):
                path.unlink()
        return tasks


def _tell(path: Path, task_id: str) -> bool:
    """Whether the task still stands in the file of a dead worker; it does not any more after that."""
    with _if_dead(path) as descriptor:
        if descriptor is None:
            return False
        place = note.running(os.pread(descriptor, _MOST_BYTES, 0)).get(task_id)
        if place is not None:
            os.pwrite(descriptor, bytes(note.SIZE), place)
        return place is not None


@contextmanager
def _if_dead(path: Path) -> Iterator[int | None]:
    """The file, locked, if its worker is dead and nobody else is reading in it; else None."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        # Gone meanwhile, or another user's, or on a disk that can't be written any more: nothing that could be told once only.
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        dead = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        dead = False
    try:
        yield descriptor if dead else None
    finally:
        os.close(descriptor)
