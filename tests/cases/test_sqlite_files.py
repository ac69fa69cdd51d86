"""The SQLite file and what stands beside it: whose it is, which one it is, and what somebody else has put there."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker.interface import Delivery
from taskq.broker.sqlite.consumer import SqliteConsumer
from taskq.broker.sqlite.properties import correlation_id
from taskq.broker.sqlite.session import SqliteSession
from taskq.errors import ConfigurationError, ConnectionLost, DatabaseError
from taskq.results.sqlite import SqliteResults
from taskq.sqlite import Database, path_of
from taskq.workers.obituary import Register
from tests.integration.sqlite_children import Child, consumer_of, publication, publish, settings_of
from tests.support import Hold, eventually


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/shop/shop.db"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def ids(deliveries: list[Delivery]) -> list[str]:
    return sorted(correlation_id(delivery.properties) or "" for delivery in deliveries)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Whose it is


@pytest.mark.parametrize("bits", [0, 0o022, 0o077])
def test_what_taskq_makes_is_for_its_user_alone(url: str, tmp_path: Path, bits: int) -> None:
    with umask(bits):
        consumer = consumer_of(url, "mail")
        publish(url, "mail", "a")
        assert SqliteResults(url, 60.0).wait("a", 0.01) is None
        register = Register(2, tmp_path / "state" / "workers")
    file = path_of(url)
    assert {mode(tmp_path / "state"), mode(file.parent), mode(tmp_path / "state" / "workers")} == {0o700}
    for path in file.parent.iterdir():
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert {mode(path) for path in Path(f"{file}.live").iterdir()} == {0o600}
    assert {mode(path) for path in (tmp_path / "state" / "workers").iterdir()} == {0o600}
    register.close()
    consumer.close()


def test_what_exists_keeps_its_permissions_and_who_may_write_may_wake(tmp_path: Path) -> None:
    folder, file = tmp_path / "shared", tmp_path / "shared" / "shop.db"
    folder.mkdir()
    folder.chmod(0o770)
    file.touch()
    file.chmod(0o660)
    consumer = consumer_of(f"sqlite:///{file}", "mail")
    assert (mode(folder), mode(file), mode(Path(f"{file}-wal"))) == (0o770, 0o660, 0o660)
    assert mode(Path(f"{file}.live")) == 0o770
    assert [mode(pipe) for pipe in Path(f"{file}.live").iterdir()] == [0o660]
    consumer.close()


# Which one it is


@pytest.mark.parametrize("what", ["file", "folder", "file that is not there yet"])
def test_behind_a_symbolic_link_it_is_the_same(tmp_path: Path, what: str) -> None:
    (tmp_path / "real").mkdir()
    file = tmp_path / "real" / "shop.db"
    if what == "file":
        Database(file).close()
    if what == "folder":
        (tmp_path / "link").symlink_to(tmp_path / "real")
        other = tmp_path / "link" / "shop.db"
    else:
        other = tmp_path / "link.db"
        other.symlink_to(file)
    first = consumer_of(f"sqlite:///{other}", "mail")
    publish(f"sqlite:///{file}", "mail", "a")
    assert ids(Hold(first).receive(1)) == ["a"]
    second = consumer_of(f"sqlite:///{file}", "mail")
    assert Hold(second).quiet(), "the first one lives"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".live") == []
    first.close()
    assert ids(Hold(second).receive(1)) == ["a"]
    second.close()


def test_a_file_with_two_names_is_refused(url: str, tmp_path: Path) -> None:
    publish(url, "mail", "a")
    other = tmp_path / "other.db"
    other.hardlink_to(path_of(url))
    for name in (path_of(url), other):
        with pytest.raises(DatabaseError, match="hard links") as told:
            SqliteSession(settings_of(f"sqlite:///{name}"), 1.0)
        assert not told.value.passing
    other.unlink()
    publish(url, "mail", "b")


@pytest.mark.parametrize("path", ["a\0b.db", "", ":memory:"])
def test_what_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="names no file"):
        path_of(f"sqlite:///{path}")


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(DatabaseError, match="no file"):
            Database(tmp_path / name)


def test_nothing_is_confirmed_into_a_file_that_was_deleted(url: str) -> None:
    session = SqliteSession(settings_of(url), 5.0)
    consumer, deadline = consumer_of(url, "mail"), time.monotonic() + 60.0
    session.publish([publication("mail", "a")], deadline)
    for path in path_of(url).parent.glob("shop.db*"):
        if path.is_file():
            path.unlink()
    deleted = time.monotonic()
    eventually(lambda: time.monotonic() - deleted > 0.02, "it may be believed to be there for a moment")
    with pytest.raises(DatabaseError, match="deleted or replaced") as told:
        session.publish([publication("mail", "b")], deadline)
    assert told.value.passing
    session.publish([publication("mail", "c")], deadline)
    session.close()

    def noticed() -> bool:
        try:
            consumer.tick()
        except ConnectionLost:
            return True
        return False

    eventually(noticed, "the worker's consumer connects again")
    consumer.close()
    again = consumer_of(url, "mail")
    assert ids(Hold(again).receive(1)) == ["c"]
    again.close()


# What somebody else has put there


def fill(folder: Path) -> None:
    """With everything that is no pipe of ours."""
    folder.mkdir(parents=True)
    for name in (
        "consumer-",
        "consumer-x",
        "consumer-1.5",
        "consumer-٣",
        "consumer-01",
        "waiter-",
        "consumer-" + "9" * 40,
        ".x",
    ):
        os.mkfifo(folder / name)
    (folder / "consumer-2").mkdir()
    (folder / "consumer-3").write_text("junk")
    (folder / "consumer-4").symlink_to("/dev/zero")
    (folder / "consumer-5").symlink_to(folder / "consumer-5")
    (folder / "waiter-6").mkdir()
    os.mkfifo(folder / "consumer-7", 0)
    os.mkfifo(folder / os.fsdecode(b"consumer-\xe9"))


def test_junk_among_the_pipes_harms_nobody(url: str) -> None:
    fill(Path(f"{path_of(url)}.live"))
    dying = Child("hold", url, "mail", 2)
    publish(url, "mail", "a", "b")
    assert dying.line() == "2"
    session, consumer = SqliteSession(settings_of(url), 5.0), consumer_of(url, "mail")
    hold = Hold(consumer)
    assert hold.quiet()
    # In the table too, as if they were consumers that hold something.
    database = Database(path_of(url))
    with database.transaction():
        for owner in range(2, 8):
            database.execute("insert into consumers values ('mail', ?)", (owner,))
    dying.kill()
    assert ids(hold.receive(2)) == ["a", "b"]
    assert session.depth("mail") == 0
    results = SqliteResults(url, 60.0)
    assert results.wait("a", 0.01) is None
    while results.expire():
        pass
    for opened in (results, session, consumer, database):
        opened.close()


def test_the_folder_of_pipes_may_be_something_else(url: str) -> None:
    publish(url, "mail", "a")
    folder = Path(f"{path_of(url)}.live")
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
    folder.write_text("junk")
    for use in (lambda: consumer_of(url, "mail"), lambda: SqliteSession(settings_of(url), 1.0).depth("mail")):
        with pytest.raises(DatabaseError, match=r"shop\.db\.live"):
            use()


def test_failed_connections_leave_nothing_behind(url: str) -> None:
    publish(url, "mail", "a")
    peer = consumer_of(url, "mail")
    folder = Path(f"{path_of(url)}.live")
    with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None)) as other:
        other.execute("select * from messages").fetchall()
        pipes, opened = len(list(folder.iterdir())), descriptors()

        def fail(text: str) -> None:
            for _ in range(5):
                consumer = SqliteConsumer(settings_of(url), ["mail"])
                with pytest.raises(DatabaseError, match=text):
                    consumer.connect(0.01)

        other.execute("begin immediate")
        fail("locked")
        other.execute("rollback")
        # What a consumer looks at last.
        other.execute("alter table controls rename to elsewhere")
        fail("no such table")
        assert len(list(folder.iterdir())) == pipes
        # One that SQLite keeps for the next time, as closing it would take the locks of this process' other connections.
        assert descriptors() <= opened + 1
        assert other.execute("select count(distinct owner) from consumers").fetchone() == (1,)
    peer.close()
