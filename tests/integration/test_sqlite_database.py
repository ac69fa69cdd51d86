import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker.sqlite.properties import decode
from taskq.errors import ConfigurationError, DatabaseError
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from taskq.schema import APPLICATION_ID, VERSION
from taskq.sqlite import Database, path_of
from tests.integration.sqlite_children import Child, consumer_of, publication, publish
from tests.support import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "taskq.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "amqp://host"])
def test_a_url_must_name_a_file(url: str) -> None:
    with pytest.raises(ConfigurationError, match="names no file"):
        path_of(url)


def test_urls_are_relative_or_absolute() -> None:
    assert path_of("sqlite:///folder/taskq.db") == Path.cwd() / "folder" / "taskq.db"
    assert path_of("sqlite:////var/lib/taskq.db") == Path("/var/lib/taskq.db")


def test_a_new_file_is_durable_and_marked_as_ours(database: Database) -> None:
    assert database.execute("pragma journal_mode") == [("wal",)]
    assert database.execute("pragma synchronous") == [(2,)]
    assert database.execute("pragma application_id") == [(APPLICATION_ID,)]


def test_a_transaction_that_raises_changes_nothing(database: Database) -> None:
    heard: list[str] = []
    with pytest.raises(KeyError), database.transaction():
        database.execute("insert into queues values ('a', 0)")
        database.after_commit(heard.append, "a")
        raise KeyError
    assert database.execute("select * from queues") == []
    with database.transaction():
        with database.transaction():
            database.execute("insert into queues values ('b', 0)")
        database.after_commit(heard.append, "b")
        database.after_commit(heard.append, "b")
        assert heard == []
    assert heard == ["b"]
    assert database.execute("select name from queues") == [("b",)]


def test_what_fails_before_the_commit_fails_the_transaction(database: Database) -> None:
    def enter(name: str) -> None:
        database.execute("insert into queues values (?, 0)", (name,))

    with database.transaction():
        database.before_commit(enter, "last")
        database.before_commit(enter, "last")
        enter("first")
    assert database.execute("select name from queues order by name") == [("first",), ("last",)]
    with pytest.raises(DatabaseError, match="UNIQUE"), database.transaction():
        database.before_commit(enter, "last")
        enter("second")
    with database.transaction():
        enter("third")
    assert database.execute("select name from queues order by name") == [("first",), ("last",), ("third",)]


def test_an_error_that_was_caught_inside_still_fails_the_transaction(database: Database) -> None:
    with pytest.raises(DatabaseError, match="UNIQUE"), database.transaction():
        database.execute("insert into queues values ('a', 0)")
        with pytest.raises(DatabaseError):
            database.execute("insert into queues values ('a', 0)")
    assert database.execute("select * from queues") == []


def test_threads_take_turns(database: Database) -> None:
    def add(number: int) -> None:
        for step in range(50):
            with database.transaction(durable=False):
                database.execute("insert into queues values (?, 0)", (f"{number}-{step}",))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.execute("select count(*) from queues") == [(200,)]


def test_several_processes_may_open_a_new_file_at_once(path: Path) -> None:
    code = "import sys, pathlib; from taskq.sqlite import Database; Database(pathlib.Path(sys.argv[1]), 20.0)"
    processes = [subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT) for _ in range(6)]
    assert [process.wait(30) for process in processes] == [0] * 6


def test_a_foreign_database_is_refused_and_untouched(path: Path) -> None:
    path.parent.mkdir(parents=True)
    foreign = sqlite3.connect(path)
    foreign.execute("create table customers (name)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="not one of taskq's"):
        Database(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_is_no_database_is_refused_and_untouched(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"important notes\n" * 1000)
    with pytest.raises(DatabaseError, match="is not an SQLite database"):
        Database(path)
    assert path.read_bytes() == b"important notes\n" * 1000


def test_a_file_of_a_newer_taskq_is_refused(path: Path) -> None:
    Database(path).close()
    newer = sqlite3.connect(path)
    newer.execute(f"pragma user_version = {VERSION + 1}")
    newer.close()
    with pytest.raises(DatabaseError, match="upgrade taskq"):
        Database(path)


def first_version(path: Path) -> None:
    path.parent.mkdir(parents=True)
    old = sqlite3.connect(path)
    old.executescript(Path(__file__).with_name("sqlite_version_1.sql").read_text())
    old.close()


def test_a_file_of_an_older_taskq_is_brought_up_to_date_with_all_that_is_in_it(path: Path) -> None:
    first_version(path)
    url = f"sqlite:///{path}"
    database = Database(path)
    assert database.execute("pragma user_version") == [(VERSION,)]
    new = Database(path.with_name("new.db"))
    schema = "select type, name, replace(replace(sql, ' ', ''), char(10), '') from sqlite_master order by name"
    assert database.execute(schema) == new.execute(schema)
    assert database.execute("select queue, properties from messages where due = 4e9") != []
    database.close()
    new.close()
    consumer = consumer_of(url, "mail")
    arrived = [(decode(one.properties, one.body).correlation_id, one.redelivered) for one in consumer.receive()]
    assert arrived == [("urgent", False), ("ready", False), ("held", True)]
    results = SqliteResults(url, 60.0)
    assert results.fetch(["done"])[0] == Record("done", "SUCCESS", b'{"result": 1}')
    results.close()
    consumer.close()


def test_several_processes_may_bring_a_file_up_to_date_at_once(path: Path) -> None:
    first_version(path)
    code = "import sys, pathlib; from taskq.sqlite import Database; Database(pathlib.Path(sys.argv[1]), 20.0)"
    processes = [subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT) for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4


def test_a_step_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    first_version(path)
    old = sqlite3.connect(path)
    # Taken by somebody else: the second of the statements that the step consists of cannot be carried out.
    old.execute("create table controls_expires (x)")
    old.commit()
    with pytest.raises(DatabaseError, match="controls_expires"):
        Database(path)
    assert old.execute("pragma user_version").fetchone() == (1,)
    assert old.execute("select name from sqlite_master where name = 'controls'").fetchall() == []
    old.close()


def test_a_damaged_file_is_called_damaged(path: Path) -> None:
    Database(path).close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(size - 100))
    with pytest.raises(DatabaseError, match="is damaged"):
        publish(f"sqlite:///{path}", "mail", "a")


def test_a_locked_file_is_called_locked(path: Path, database: Database) -> None:
    other = Database(path, busy_timeout=0.1)
    with database.transaction(), pytest.raises(DatabaseError, match="locked by another process"), other.transaction():
        pass
    other.close()


@pytest.fixture
def folder_for_nobody() -> Iterator[Path]:
    """A folder that any user can read, and none but root can write to."""
    folder = Path(f"/tmp/taskq-test-{os.getpid()}")  # the folders of pytest are closed to other users
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("existing", [False, True])
def test_a_read_only_folder_is_called_so(folder_for_nobody: Path, existing: bool) -> None:
    path = folder_for_nobody / "taskq.db"
    if existing:
        Database(path).close()
    folder_for_nobody.chmod(0o555)
    # Root may write anywhere, so that a child becomes somebody else once everything is imported.
    code = (
        "import os, sys, pathlib; from taskq.sqlite import Database; from taskq.errors import DatabaseError\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: Database(pathlib.Path(sys.argv[1]))\n"
        "except DatabaseError as error: print(error)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "must both be writable" in process.stdout


def test_a_full_disk_loses_nothing_and_is_no_obstacle_afterwards(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/taskq.db"
    consumer = consumer_of(url, "mail")
    database = consumer.database
    assert database is not None
    consumer.publish([publication("mail", f"{number}") for number in range(100)])
    held = consumer.receive()
    ((pages,),) = database.execute("pragma page_count")
    database.execute(f"pragma max_page_count = {pages + 5}")
    kept = 100
    with pytest.raises(DatabaseError, match="is full: nothing was stored"):
        while True:
            consumer.publish([publication("mail", f"{kept}")])
            kept += 1
    with pytest.raises(DatabaseError, match="is full"), consumer.transaction():
        consumer.ack(held[0])
        consumer.publish([publication("mail", "x" * 5000, priority=number) for number in range(9)])
    database.execute("pragma max_page_count = 1000000")
    with consumer.transaction():
        for delivery in held:
            consumer.ack(delivery)
    consumer.publish([publication("mail", f"{kept}")])
    assert len(consumer.receive()) == kept + 1 - 100
    consumer.close()


def test_a_log_that_cannot_grow_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/taskq.db"
    publish(url, "mail", "first")
    consumer = consumer_of(url, "mail")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        with pytest.raises(DatabaseError, match="nothing was stored"):
            consumer.publish([publication("mail", "x" * 200_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    consumer.publish([publication("mail", "second")])
    assert [decode(delivery.properties, delivery.body).correlation_id for delivery in consumer.receive()] == ["first", "second"]
    consumer.close()


def test_a_forked_child_has_a_connection_of_its_own(tmp_path: Path) -> None:
    database = Database(tmp_path / "taskq.db")
    with database.transaction():
        database.execute("insert into queues values ('parent', 0)")
    pid = os.fork()
    if pid == 0:
        try:
            with database.transaction():
                database.execute("insert into queues values ('child', 0)")
            inode = os.stat(database.path).st_ino
            locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
            os._exit(0 if any(line[4] == str(os.getpid()) for line in locks) else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert database.execute("select name from queues order by name") == [("child",), ("parent",)]
    database.close()


def test_a_fork_inside_a_transaction_leaves_the_child_a_clear_error(tmp_path: Path) -> None:
    database = Database(tmp_path / "taskq.db")
    with database.transaction():
        database.execute("insert into queues values ('parent', 0)")
        pid = os.fork()
        if pid == 0:
            try:
                database.execute("select 1")
            except DatabaseError as error:
                os._exit(0 if "was forked" in str(error) else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert database.execute("select name from queues") == [("parent",)]
    database.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forks_while_threads_are_in_transactions(tmp_path: Path) -> None:
    first, second = Database(tmp_path / "first.db"), Database(tmp_path / "second.db")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            with first.transaction(durable=False), second.transaction(durable=False):
                second.execute("insert into queues values ((select count(*) from queues), 0)")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                try:
                    second.execute("select count(*) from queues")
                    os._exit(0)
                finally:
                    os._exit(4)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        done.set()
        thread.join()
    first.close()
    second.close()


def test_a_producer_that_is_killed_has_published_what_it_said(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/taskq.db"
    said: list[str] = []
    for _ in range(3):
        child = Child("produce", url, "mail")
        said += [child.line() for _ in range(20)]
        said += child.kill()
    consumer = consumer_of(url, "mail", window=100_000)
    found = {bytes(delivery.properties) for delivery in consumer.receive()}
    consumer.close()
    assert all(any(f'"{name}"'.encode() in properties for properties in found) for name in said)
