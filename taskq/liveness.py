"""Who is alive, and how to wake them: one named pipe (FIFO) for each consumer and each waiter of a database.

The pipes stand in the folder ``<file>.live`` beside the database. Each is held open and locked (``flock``) by its owner alone,
so the kernel drops the lock the moment the owner dies, however it dies. Writing a byte wakes the owner. A peer that holds the
pipe's other end is told by the kernel at once when the last reader, the owner, is gone: no polling. Invariant: the lock
alone decides who is dead, and what the dead held is released by whoever takes their lock. So nobody may lock a pipe who may not
write to the database. What else stands in the folder is no pipe of ours, and is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import select
import selectors
import stat
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from taskq.errors import DatabaseError
from taskq.files import FILE, FOLDER
from taskq.sqlite import Database

#: What a byte in a pipe says: there is a message or a result; a delayed message came in; a new consumer appeared; a control
#: entry was made.
READY, DUE, PEERS, CONTROL = b"m", b"d", b"p", b"c"
#: Reported by ``Watch.poll`` beside the bytes: a peer's pipe has lost its owner.
DEATH = b"x"

Kind = Literal["consumer", "waiter"]
_NAME = re.compile("(consumer|waiter)-(0|[1-9][0-9]{0,17})")
_OWNERS = {"consumer": "select distinct owner from consumers", "waiter": "select distinct waiter from waiters"}
_RELEASE = "update messages set owner = null, redelivered = 1 where owner = ? returning queue"

#: Stand for the descriptor of a pipe that is not there, and of one that is another user's.
_MISSING, _NOT_OURS = -1, -2
#: What may be otherwise in a moment: no room, no descriptors.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)

# Known to the module because Python's fork hooks take no arguments.
_pipes: weakref.WeakValueDictionary[int, Pipe] = weakref.WeakValueDictionary()


def folder_of(database: Database) -> Path:
    """Where the pipes of a database stand."""
    return database.path.with_name(f"{database.path.name}.live")


class Pipe:
    """The sign of life of one consumer or waiter, from construction to ``close``. ``id`` is unique for ever."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._descriptor = -1
        try:
            writers = _writers(folder)
            with suppress(FileExistsError):
                folder.mkdir(FOLDER)
                # Whoever may write to the file must be able to wake us, and to find us dead; the umask has no say.
                folder.chmod(FOLDER | writers | writers << 1 | writers >> 1)
            while not self._create(folder, kind, FILE | writers | writers << 1):
                pass
        except OSError as error:
            self.close()
            text = f"cannot make a named pipe in {folder} ({error.strerror}); make it writable"
            raise DatabaseError(text, passing=error.errno in _PASSING) from error
        _pipes[id(self)] = self

    def _create(self, folder: Path, kind: Kind, mode: int) -> bool:
        self.id = int.from_bytes(os.urandom(7), "big")
        self.path = folder / f"{kind}-{self.id}"
        os.mkfifo(self.path, FILE)
        try:
            # For reading and writing, so that the pipe keeps a writer and never reports an end.
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        # Until the lock is taken a reaper may hold this pipe for a dead one's and remove it: then try again under another name.
        with suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(self._descriptor, mode)
            if self.in_place():
                return True
        self.disown()
        return False

    def fileno(self) -> int:
        """The descriptor, readable once the pipe has been rung; -1 when closed."""
        return self._descriptor

    def in_place(self) -> bool:
        """Whether the pipe still stands in its folder, where others look for it."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def ring(self) -> None:
        """Make the pipe readable for its own owner."""
        with suppress(BlockingIOError):
            os.write(self._descriptor, READY)

    def read(self) -> bytes:
        """The bytes that have been written since the last call."""
        try:
            return os.read(self._descriptor, 65536)
        except BlockingIOError:
            return b""

    def wait(self, timeout: float) -> None:
        """Block until the pipe is rung, for ``timeout`` seconds at most."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        poller.poll(max(timeout, 0.0) * 1000)

    def close(self) -> None:
        """Take the sign of life away; what is held under it must have been given back before."""
        if self._descriptor >= 0:
            # Left where it is, it is a dead one's.
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self.disown()

    def disown(self) -> None:
        """Let go of the descriptor alone: in a forked child, which must not keep its parent's pipe alive."""
        os.close(self._descriptor)
        self._descriptor = -1


class Watch:
    """A consumer's pipe and its eyes on the other consumers of the database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pipe = Pipe(folder, "consumer")
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.pipe, selectors.EVENT_READ)
        self._peers: dict[str, int] = {}

    def fileno(self) -> int:
        """One descriptor that is readable when ``poll`` has something to report."""
        return self._selector.fileno()

    def poll(self, timeout: float | None) -> bytes:
        """What has happened, as a string of the bytes above; waits for ``timeout`` seconds at most (None: for ever)."""
        news = b""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self.pipe:
                news += self.pipe.read()
            else:
                self._forget(key.data)
                news += DEATH
        return news

    def look_around(self) -> bool:
        """Watch the peers that appeared since the last call; returns whether one of those was found dead."""
        names = set(_names(self._folder, "consumer"))
        for name in self._peers.keys() - names:
            self._forget(name)
        dead = False
        for name in names - self._peers.keys() - {self.pipe.path.name}:
            try:
                descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            except (FileNotFoundError, PermissionError):
                continue
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise _untold(self._folder / name, error) from error
                dead = True
                continue
            # A pipe's writing end is never readable: the only event it ever has is the loss of its last reader.
            self._selector.register(descriptor, selectors.EVENT_READ, name)
            self._peers[name] = descriptor
        return dead

    def _forget(self, name: str) -> None:
        descriptor = self._peers.pop(name)
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Close the pipe and stop watching."""
        for name in list(self._peers):
            self._forget(name)
        self._selector.close()
        self.pipe.close()


def ring(folder: Path, kind: Kind, owners: Iterable[int], news: bytes) -> None:
    """Wake the owners; those that are dead or gone are left to the reapers.

    A bell may be lost but never raises: what it tells of is stored already, and is found at the next look around.
    """
    for owner in owners:
        _write(folder / f"{kind}-{owner}", news)


def ring_everyone(folder: Path, news: bytes) -> None:
    """Wake all consumers; as ``ring``."""
    names: list[str] = []
    # A process that is out of descriptors cannot list the folder.
    with suppress(DatabaseError):
        names = _names(folder, "consumer")
    for name in names:
        _write(folder / name, news)


def _write(path: Path, news: bytes) -> None:
    # Not there, or no reader: it is gone or dead. Full: its owner has more than enough to wake it. Out of descriptors, or not
    # allowed to: the bell is lost.
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            os.write(descriptor, news)
        finally:
            os.close(descriptor)


def _writers(folder: Path) -> int:
    """The bits of permission to write that others than its owner have on the database of this folder."""
    try:
        return os.stat(folder.with_suffix("")).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    except FileNotFoundError:
        return 0


def _untold(path: Path, error: OSError) -> DatabaseError:
    return DatabaseError(f"nobody can tell whether the owner of {path} is alive: {error.strerror}", passing=True)


def _names(folder: Path, kind: Kind) -> list[str]:
    """The names of the pipes in the folder; raises ``DatabaseError``."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name is not None and name[1] == kind and _is_pipe(entry):
                    names.append(entry.name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DatabaseError(f"cannot list {folder}: {error.strerror}", passing=error.errno in _PASSING) from error
    return names


def _is_pipe(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def reap(database: Database, kind: Kind, stop: float = math.inf) -> bool:
    """Release what the dead consumers held, or forget the dead waiters, and remove their pipes.

    Returns False if it was ``stop``, in ``time.monotonic()``, before all were looked at. Raises ``DatabaseError``.
    """
    folder = folder_of(database)
    known = {int(name.partition("-")[2]) for name in _names(folder, kind)}
    known.update(owner for (owner,) in database.execute(_OWNERS[kind]))
    for owner in known:
        if time.monotonic() > stop:
            return False
        with _if_dead(folder / f"{kind}-{owner}") as dead:
            if dead and kind == "consumer":
                release(database, owner)
            elif dead:
                with database.transaction(durable=False):
                    database.execute("delete from waiters where waiter = ?", (owner,))
    return True


def holder(database: Database, consumer: int) -> int | None:
    """The process id of a consumer of the database, where the kernel tells: on Linux, in our own PID namespace."""
    try:
        pipe = os.stat(folder_of(database) / f"consumer-{consumer}")
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    place = f"{os.major(pipe.st_dev):02x}:{os.minor(pipe.st_dev):02x}:{pipe.st_ino}"
    # 1: FLOCK  ADVISORY  WRITE 26776 fe:00:2212204 0 EOF
    found = (line.split() for line in locks.splitlines())
    return next((int(lock[4]) for lock in found if lock[1] == "FLOCK" and lock[5] == place), None)


@contextmanager
def _if_dead(path: Path) -> Iterator[bool]:
    """Whether the owner of the pipe is dead; the pipe is gone at the end of the block if so. Raises ``DatabaseError``."""
    try:
        descriptor = _opened(path)
    except PermissionError:
        # Another user's, who may be alive.
        descriptor = _NOT_OURS
    if descriptor < 0:
        yield descriptor == _MISSING
        return
    try:
        dead = _lock(path, descriptor)
        # The lock is kept until the rows are released: if this process dies before, the next reaper starts over.
        yield dead
        if dead:
            # Where only its owner may remove it, it is found dead again.
            with suppress(OSError):
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """The pipe, to be locked; ``_MISSING`` where there is none, whatever else may be there. Raises ``PermissionError`` too."""
    try:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            return _MISSING
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _MISSING
    except PermissionError:
        raise
    except OSError as error:
        raise _untold(path, error) from error


def _lock(path: Path, descriptor: int) -> bool:
    """Whether the pipe could be locked: otherwise its owner is alive, or another reaper is at work on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _untold(path, error) from error
    return True


def release(database: Database, owner: int) -> None:
    """Give back everything that a consumer holds, wake others for it, and forget the consumer."""
    with database.transaction(durable=False):
        released = database.execute(_RELEASE, (owner,))
        database.execute("delete from consumers where owner = ?", (owner,))
        for (queue,) in set(released):
            wake(database, queue)


def wake(database: Database, queue: str) -> None:
    """Wake the consumers of the queue when the current transaction is committed."""
    database.before_commit(_wake, database, queue)


def _wake(database: Database, queue: str) -> None:
    # Who is to be woken is read inside the transaction: after the commit nothing may fail any more.
    owners = tuple(owner for (owner,) in database.execute("select owner from consumers where queue = ?", (queue,)))
    if owners:
        database.after_commit(ring, folder_of(database), "consumer", owners, READY)


def _after_fork_in_child() -> None:
    for reference in _pipes.valuerefs():
        if (pipe := reference()) and pipe.fileno() >= 0:
            pipe.disown()


os.register_at_fork(after_in_child=_after_fork_in_child)
