"""One SQLite file that holds the embedded broker's messages and the results: opening it, its transactions.

Owns the connection and what SQLite's errors mean; what stands in the file is said by ``schema``, and what it means by
``broker/sqlite`` and ``results/sqlite``.
Invariant: a transaction that returned from its block with ``durable=True`` is on the disk (write-ahead log, fsynced), one that
raised has changed nothing, and a connection is never used or closed by another process than the one that opened it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskq import sqlite_forks
from taskq.errors import ConfigurationError, DatabaseError
from taskq.files import make_file, make_folder
from taskq.schema import APPLICATION_ID, STEPS, VERSION
from taskq.sqlite_errors import ERRORS, explained

if sqlite3.sqlite_version_info < (3, 35, 0):
    raise ImportError(f"taskq needs SQLite 3.35 or newer, and this Python was built with {sqlite3.sqlite_version}")

#: Past this size the write-ahead log is cut back after a checkpoint, so that one huge batch does not occupy the disk for ever.
_LOG_BYTES = 64 * 1024 * 1024
#: For how long the file is believed to be still in its place, in seconds: a look for each of many short calls would cost much.
_CHECK_SECONDS = 0.01


def path_of(url: str) -> Path:
    """The file of an ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` URL; raises ``ConfigurationError`` for others.

    Symbolic links are followed: the file's companions stand beside itself, whatever name it is opened by.
    """
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path == ":memory:" or "\0" in path:
        raise ConfigurationError(f"{url!r} names no file; write sqlite:///relative/file.db or sqlite:////absolute/file.db")
    return Path(os.path.realpath(path))


class Database:
    """A connection to one file, shared by the threads of a process and reopened after a fork.

    Opening creates the file and its folder where they are missing, for this user alone, and raises ``DatabaseError`` for a file
    that is not ours, without touching it. ``busy_timeout`` is how many seconds to wait for another process's transaction.
    """

    def __init__(self, path: Path, busy_timeout: float = 5.0) -> None:
        self._name = os.path.realpath(path)
        self.path = Path(self._name)
        self._check_at = 0.0
        #: Which file it is that is open under this name.
        self.identity = (0, 0)
        #: How large a row may be.
        self.most_bytes = 0
        self.lock = threading.RLock()
        self._busy_timeout = busy_timeout
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._durable = True
        self._in_transaction = False
        self._failure: DatabaseError | None = None
        self._before_commit: dict[tuple[Any, ...], None] = {}
        self._after_commit: dict[tuple[Any, ...], None] = {}
        with self.lock:
            # Known before it is open: a fork in another thread must wait for the end of the opening.
            sqlite_forks.watch(self)
            self._open()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run one statement and return its rows. A statement that writes belongs inside a ``transaction``."""
        with self.lock:
            try:
                return self._opened().execute(sql, parameters).fetchall()
            except ERRORS as error:
                raise self._failed(error) from error

    def execute_many(self, sql: str, parameters: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of the parameters and return how many rows it changed; inside a ``transaction`` only."""
        with self.lock:
            try:
                return self._opened().executemany(sql, parameters).rowcount
            except ERRORS as error:
                raise self._failed(error) from error

    @contextmanager
    def transaction(self, *, durable: bool = True, patience: float | None = None) -> Iterator[None]:
        """Everything inside takes effect together at the end of the block, or not at all when it raises.

        ``durable=False`` saves the fsync: the transaction survives the death of every process, but may be undone by the loss
        of power. ``patience`` is for how many seconds to wait for others' transactions, None for as long as for others. Inside
        another transaction, the block becomes a part of that one. Raises ``DatabaseError``.
        """
        with self.lock:
            if self._in_transaction:
                yield
                return
            self._begin(durable, self._busy_timeout if patience is None else patience)
            try:
                yield
                for hook, *arguments in self._before_commit:
                    hook(*arguments)
                self._commit()
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._in_transaction = False
            hooks, self._after_commit = self._after_commit, {}
        for hook, *arguments in hooks:
            hook(*arguments)

    @contextmanager
    def part(self) -> Iterator[None]:
        """A part of the current transaction: when it raises, it has changed nothing, and the transaction can go on."""
        self.execute("savepoint part")
        failure = self._failure
        try:
            yield
        except BaseException:
            # Not after a full disk, for example: then SQLite has undone the whole transaction by itself.
            if self._opened().in_transaction:
                self.execute("rollback to part")
                self.execute("release part")
                self._failure = failure
            raise
        self.execute("release part")

    def before_commit(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call ``hook`` as the last part of the current transaction; the same hook with the same arguments is called once."""
        self._before_commit[(hook, *arguments)] = None

    def after_commit(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call ``hook`` once the current transaction is committed; the same hook with the same arguments is called once.

        It must not raise: the caller would believe that nothing has been stored, and store it again.
        """
        self._after_commit[(hook, *arguments)] = None

    def set_busy_timeout(self, seconds: float) -> None:
        """How long to wait from now on for another process's transaction."""
        with self.lock:
            self._busy_timeout = max(seconds, 0.0)
            self.execute(f"pragma busy_timeout = {int(self._busy_timeout * 1000)}")

    def close(self) -> None:
        """Close the connection; it is opened again by the next use."""
        with self.lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
                self._connection = None

    def park(self) -> None:
        """Close the connection before a fork, unless the forking thread is inside a transaction; the caller holds ``lock``."""
        if not self._in_transaction:
            self.close()

    def disown(self) -> None:
        """Forget the parent's state in a forked child."""
        self.lock = threading.RLock()
        if self._connection is not None:
            # Closing it here could delete the log that the parent writes to, so the reference is never given back.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            return self._open()
        if self._pid != os.getpid():
            raise DatabaseError(
                f"{self.path} was open when this process was forked from {self._pid}, in the middle of a transaction or without"
                " Python's fork hooks; use taskq for the first time after the fork, or make the server run the hooks"
            )
        return self._connection

    def _begin(self, durable: bool, patience: float) -> None:
        try:
            connection = self._opened()
            if durable:
                self._check_place()
            if durable is not self._durable:
                connection.execute("pragma synchronous = full" if durable else "pragma synchronous = normal")
                self._durable = durable
            self._begin_immediate(connection, patience)
        except sqlite3.Error as error:
            # It may have begun all the same, and would keep everybody out.
            self._roll_back()
            raise self._failed(error) from error
        self._in_transaction, self._failure = True, None
        self._forget_hooks()

    @property
    def in_place(self) -> bool:
        """Whether what is open still is the file of this name."""
        try:
            found = os.stat(self._name)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity

    def _check_place(self) -> None:
        """What is confirmed must be where others look for it: raises ``DatabaseError`` if it would not be."""
        now = time.monotonic()
        if now < self._check_at:
            return
        if self.in_place:
            self._check_at = now + _CHECK_SECONDS
            return
        self.close()
        raise DatabaseError(
            f"{self.path} was deleted or replaced while it was open; nothing was stored, and what it held is gone unless the "
            "file still has another name; the next call opens what is there then",
            passing=True,
        )

    def _begin_immediate(self, connection: sqlite3.Connection, patience: float) -> None:
        """Wait for others' transactions in short random steps.

        SQLite's own steps grow to a tenth of a second, and where others write without a pause they all end too late.
        """
        give_up = time.monotonic() + patience
        connection.execute("pragma busy_timeout = 0")
        try:
            while True:
                try:
                    connection.execute("begin immediate")
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                        raise
                    time.sleep(random.uniform(0.0001, 0.002))
                else:
                    return
        finally:
            connection.execute(f"pragma busy_timeout = {int(self._busy_timeout * 1000)}")

    def _commit(self) -> None:
        if self._failure is not None:
            # SQLite undoes the whole transaction by itself after some errors: what followed must not count as committed.
            raise self._failure
        try:
            self._opened().execute("commit")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _roll_back(self) -> None:
        self._forget_hooks()
        connection = self._connection
        if connection is None or self._pid != os.getpid() or not connection.in_transaction:
            return
        try:
            connection.execute("rollback")
        except sqlite3.Error:
            # Closing undoes the transaction as well; the error that led here is on its way to the caller.
            self.close()

    def _forget_hooks(self) -> None:
        self._before_commit.clear()
        self._after_commit.clear()

    def _failed(self, error: Exception) -> DatabaseError:
        failure = explained(error, self.path)
        if self._in_transaction:
            self._failure = self._failure or failure
        return failure

    def _open(self) -> sqlite3.Connection:
        self._make()
        try:
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False, cached_statements=128
            )
        except ERRORS as error:
            raise explained(error, self.path) from error
        # A text that is no UTF-8 is of one row, and must not look like trouble with the file to whoever reads it with others.
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        try:
            self._prepare(connection)
        except ERRORS as error:
            connection.close()
            raise explained(error, self.path) from error
        except BaseException:
            connection.close()
            raise
        self._connection, self._pid, self._durable = connection, os.getpid(), True
        self.most_bytes = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
        return connection

    def _make(self) -> None:
        """Make the file and its folder where they are missing; raises ``DatabaseError`` where the file can't be one of ours."""
        try:
            make_folder(self.path.parent)
            # SQLite would make it for everybody. Its companions get the permissions of the file.
            make_file(self.path)
            found = os.stat(self.path)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            text = f"cannot create {self.path} ({error.strerror or error}); the file and its folder must both be writable"
            raise DatabaseError(text, passing=full) from error
        if not stat.S_ISREG(found.st_mode):
            raise DatabaseError(f"{self.path} is no file; name another one")
        if found.st_nlink > 1:
            raise DatabaseError(
                f"{self.path} has {found.st_nlink} names (hard links): who opens it by one takes those who use another for "
                f"dead; find them with 'find … -samefile {self.path}' and keep one; copies are made with SQLite's .backup"
            )
        self.identity = found.st_dev, found.st_ino

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # In a transaction, since another process may be creating the schema between two of the questions.
        connection.execute("begin")
        version = self._version(connection)
        connection.execute("commit")
        self._write_ahead(connection)
        if version < VERSION:
            connection.execute("begin immediate")
            # Another process may have taken the steps since we looked.
            for step in STEPS[self._version(connection) :]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
            connection.execute(f"pragma user_version = {VERSION}")
            connection.execute("commit")
        connection.execute("pragma synchronous = full")
        connection.execute(f"pragma journal_size_limit = {_LOG_BYTES}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Which version of the schema the file has; 0 for an empty one. Only reads."""
        (application_id,) = connection.execute("pragma application_id").fetchone()
        (version,) = connection.execute("pragma user_version").fetchone()
        if application_id == APPLICATION_ID:
            if version > VERSION:
                raise DatabaseError(
                    f"{self.path} was written by a newer taskq (schema {version}, this one knows {VERSION}); upgrade taskq"
                )
            return int(version)
        if application_id or version or connection.execute("select 1 from sqlite_master limit 1").fetchone():
            raise DatabaseError(f"{self.path} is an SQLite database, but not one of taskq's; name another file")
        return 0

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        give_up = time.monotonic() + self._busy_timeout
        while True:
            try:
                (mode,) = connection.execute("pragma journal_mode = wal").fetchone()
                break
            except sqlite3.OperationalError as error:
                # The switch does not wait for other connections by itself, and several processes may open a new file at once.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.005)
        if mode != "wal":
            raise DatabaseError(f"the file system of {self.path} allows no write-ahead log; name a file on a local disk")
