"""What only PostgreSQL has; what it shares with other backends is in ``tests/conformance``."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from taskq.errors import BackendError, ConfigurationError
from taskq.results.postgres import PostgresResults, connections, listener
from taskq.results.postgres.schema import VERSION
from taskq.results.store import Barrier, Part, Record
from tests.postgres_server import PASSWORD, Postgres, running_postgres
from tests.proxy import Proxy
from tests.support import eventually

Open = Callable[..., PostgresResults]


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens stores that are closed behind the test."""
    stores: list[PostgresResults] = []

    def open_results(url: str, ttl: float = 60.0) -> PostgresResults:
        stores.append(PostgresResults(url, ttl))
        return stores[-1]

    yield open_results
    for store in stores:
        store.close()


def ask(url: str, question: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(question.encode()).fetchall()


def count(url: str) -> int:
    """How many connections of taskq there are to the database."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'taskq'"
    [(count,)] = ask(url, query)
    return int(count)


def success(task_id: str, meta: bytes = b"{}", attempt: int = 0) -> Record:
    return Record(task_id, "SUCCESS", meta, attempt)


def forked(*roles: Callable[[], None]) -> None:
    """Each role in a forked child; fails where one of them raises."""
    children = []
    for role in roles:
        child = os.fork()
        if child == 0:
            try:
                role()
            except BaseException as error:  # noqa: BLE001  # told to the test by the exit code
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(3)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(roles)


def test_ten_processes_make_the_tables_at_once(url: str) -> None:
    def use(number: int) -> None:
        results = PostgresResults(url, 60.0)
        results.store([success(f"{number}")])
        results.close()

    forked(*[lambda number=number: use(number) for number in range(10)])
    assert ask(url, "select version from taskq_schema") == [(VERSION,)]
    assert ask(url, "select count(*) from taskq_results") == [(10,)]


def test_tables_of_a_newer_taskq_are_left_alone(url: str, opened: Open) -> None:
    opened(url).store([success("a")])
    ask(url, "update taskq_schema set version = 99 returning version")
    with pytest.raises(BackendError, match=r"99.*upgrade"):
        opened(url).store([success("a", b"2")])
    assert ask(url, "select meta from taskq_results") == [(b"{}",)]


def test_who_may_not_make_tables_is_told_so(url: str, opened: Open) -> None:
    role = url.replace("?", "?options=-crole%3Dpg_monitor&")
    with pytest.raises(BackendError, match="permission denied"):
        opened(role).fetch(["a"])


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:sec%ret@h/db",
        "postgresql://u:se@cret@h:1/db",
        "postgresql://u:secret@h:x/",
        "postgresql://h/db?passwort=secret",
        "postgresql://h/db?password=secret&x=secret",
        "postgresql://u:sec%20ret@h:x?sslpassword=secret",
    ],
)
def test_a_url_that_is_wrong_is_refused_without_its_password(address: str, opened: Open) -> None:
    with pytest.raises((ConfigurationError, BackendError)) as refused:
        opened(address).fetch(["a"])
    assert not {"secret", "sec%ret", "cret", "ret", "sec ret"} & set(re.split(r"[^\w% ]| (?!ret)", str(refused.value)))


def test_libpq_has_its_say(url: str, opened: Open) -> None:
    with pytest.raises(BackendError, match="SSL") as refused:
        opened(url.replace("sslmode=disable", "sslmode=require")).fetch(["a"])
    assert PASSWORD not in str(refused.value)
    with pytest.raises(BackendError, match="password authentication failed") as refused:
        opened(url.replace("taskq:", "taskq:wrong")).fetch(["a"])
    assert "wrong" not in str(refused.value)


def test_whatever_a_message_says_of_itself_is_kept(url: str, opened: Open) -> None:
    results = opened(url)
    names = ["\0", "x" * 100_000, "\ud800", "Grüße", "", 'it\'s "quoted"\\', "a\nb", "sha256:" + "0" * 64]
    results.store([Record(name, "FAILURE", b"\0\xff", 10**40) for name in names])
    assert [record and (record.id, record.meta) for record in results.fetch(names)] == [(name, b"\0\xff") for name in names]
    results.store([success(name, b"2", 10**41) for name in names])
    for name in names:
        assert results.wait(name, 0.0) == Record(name, "SUCCESS", b"2", 2**63 - 1)
    assert results.chords is not None
    results.chords.open([Barrier(name, 1) for name in names])
    gathered = results.chords.count([Part(name, 10**30, name, "SUCCESS", b"1") for name in names], "me")
    assert [one.state for one in gathered] == ["complete"] * len(names)
    assert [one.members[0].chord for one in gathered] == names
    results.keep("\0", b"\0", 10.0)
    assert results.document("\0") == b"\0"


def test_one_call_may_tell_of_a_task_several_times(url: str, opened: Open) -> None:
    results = opened(url)
    results.store([Record("a", "STARTED", b"1", 1), success("b"), success("a", b"2", 1), Record("a", "FAILURE", b"3", 2)])
    assert results.fetch(["a", "b"]) == [success("a", b"2", 1), success("b")]


def test_many_ends_are_told_of_in_several_notifications(url: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOOK_EVERY", 60.0)
    results = opened(url)
    names = [f"{number:0200}" for number in range(500)]
    ended: list[Record | None] = []
    waiting = threading.Thread(target=lambda: ended.append(results.wait(names[-1], 10.0)))
    waiting.start()
    eventually(lambda: listening(url), "somebody listens")
    opened(url).store([success(name) for name in names])
    waiting.join()
    assert ended == [success(names[-1])], "told, as nobody looked"


def listening(url: str) -> bool:
    """Whether a connection of taskq's listens: its last query was LISTEN, or the look for the ends that are waited for."""
    last = "(query ilike 'listen%' or query like '%taskq_results where id%')"
    return ask(url, f"select 1 from pg_stat_activity where application_name = 'taskq' and {last}") != []


def waiter(results: PostgresResults, task_id: str, seconds: float) -> tuple[threading.Thread, list[Any]]:
    """A thread that waits, and what it got, once it has ended."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(results.wait(task_id, seconds))
        except BackendError as error:
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: results._listener._waiters, "it waits")
    return thread, got


def test_a_waiter_whose_connection_breaks_is_told_all_the_same(url: str, postgres: Postgres, opened: Open) -> None:
    with Proxy(postgres.port) as proxy:
        results = opened(url.replace(f":{postgres.port}/", f":{proxy.port}/"))
        thread, got = waiter(results, "a", 20.0)
        for number in range(3):
            eventually(lambda: proxy.connections, "it is connected")
            proxy.cut()
            opened(url).store([success(f"{number}")])
        opened(url).store([success("a")])
        thread.join()
    assert got == [success("a")]


def test_a_server_that_restarts_loses_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_postgres() as server:
        results = opened(server.url)
        results.store([success("before")])
        thread, got = waiter(results, "a", 20.0)
        server.restart()
        # The idle connection is dead, and nobody need know.
        assert results.fetch(["before"]) == [success("before")]
        results.store([success("a")])
        thread.join()
        assert got == [success("a")]

        monkeypatch.setattr(listener, "PATIENCE", 0.3)
        thread, got = waiter(results, "b", 20.0)
        server.kill()
        down = time.monotonic()
        with pytest.raises(BackendError, match=r"postgresql://taskq:\*\*\*@"):
            results.store([success("b")])
        thread.join()
        assert isinstance(got[0], BackendError)
        assert time.monotonic() - down < 5.0
        server.start()
        results.store([success("b")])
        assert results.wait("b", 1.0) == success("b")


def test_a_server_that_says_nothing_is_given_up_and_found_again(opened: Open) -> None:
    with running_postgres() as server:
        results = opened(server.url)
        results.store([success("a")])
        server.freeze()
        for call in (lambda: results.store([success("b")]), lambda: results.fetch(["a"]), lambda: results.wait("a", None)):
            began = time.monotonic()
            with pytest.raises(BackendError):
                call()
            assert time.monotonic() - began < 2.5
        server.thaw()
        results.store([success("c")])
        assert [record is not None for record in results.fetch(["a", "c"])] == [True, True]


def test_who_listens_for_nobody_stops(url: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LINGER", 0.1)
    monkeypatch.setattr(listener, "LOOK_EVERY", 0.05)
    results = opened(url)
    for number in range(3):
        thread, got = waiter(results, f"{number}", 20.0)
        eventually(lambda: listening(url), "somebody listens")
        results.store([success(f"{number}")])
        thread.join()
        assert got == [success(f"{number}")]
        eventually(lambda: not listening(url), "nobody listens any more")


def test_many_threads_share_a_few_connections(url: str, opened: Open) -> None:
    results = opened(url)
    results.store([success(f"{number}") for number in range(40)])
    most = [0]

    def work(number: int) -> None:
        for _ in range(20):
            assert results.fetch([f"{number}"]) == [success(f"{number}")]
            assert results.wait(f"{number}", 1.0) == success(f"{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most[0] = max(most[0], count(url))
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= connections.MOST


def test_a_forked_child_leaves_its_parents_connections_alone(url: str, opened: Open) -> None:
    results = opened(url)
    results.store([success("a")])
    thread, got = waiter(results, "late", 20.0)
    eventually(lambda: listening(url), "the idle connection has become the one that listens")
    results.store([success("b")])

    def child() -> None:
        assert results.fetch(["a"]) == [success("a")]
        assert results.wait("nobody", 0.05) is None
        results.store([success("of the child")])
        results.close()

    forked(child, child)
    eventually(lambda: count(url) == 2, "the children's connections are gone")
    assert results.fetch(["of the child"]) == [success("of the child")]
    results.store([success("late")])
    thread.join()
    assert got == [success("late")]


def test_a_row_that_somebody_holds_is_waited_for_a_second_and_expires_another_time(url: str, opened: Open) -> None:
    results = opened(url)
    opened(url, -1.0).store([success(f"{number}") for number in range(5)])
    with psycopg.connect(url) as holder:
        holder.execute("select from taskq_results where id = '3' for update")
        began = time.monotonic()
        with pytest.raises(BackendError, match="lock timeout"):
            results.store([success("3")])
        assert time.monotonic() - began < 2.5
        while results.expire():
            pass
        assert holder.execute("select id from taskq_results").fetchall() == [("3",)]
    while results.expire():
        pass
    with psycopg.connect(url) as holder:
        assert holder.execute("select id from taskq_results").fetchall() == []


def test_nobody_waits_for_each_other_in_a_circle(url: str, opened: Open) -> None:
    opened(url).fetch(["a"])
    names = [f"{number}" for number in range(30)]

    def storm(seed: int) -> None:
        chance, results = random.Random(seed), PostgresResults(url, -1.0 if seed % 2 else 60.0)
        assert results.chords is not None
        for attempt in range(60):
            some = chance.sample(names, 20)
            results.store([success(name, attempt=attempt) for name in some])
            results.chords.open([Barrier(name, 10**6) for name in some])
            results.chords.count([Part(name, 0, f"{seed}-{attempt}", "SUCCESS", b"1") for name in some], f"{seed}")
            results.forget(chance.sample(names, 5))
            results.expire()
        results.close()

    forked(*[lambda seed=seed: storm(seed) for seed in range(4)])


def test_of_many_processes_one_completes_a_chord(url: str, opened: Open) -> None:
    results = opened(url)
    assert results.chords is not None
    chords, size = [f"c{number}" for number in range(20)], 30
    results.chords.open([Barrier(chord, size) for chord in chords])
    results.keep("done", b"", 60.0)

    def gather(seed: int) -> None:
        mine, chance = PostgresResults(url, 60.0), random.Random(seed)
        assert mine.chords is not None
        parts = [Part(chord, index, f"{index}", "SUCCESS", b"1") for chord in chords for index in range(size)]
        chance.shuffle(parts)
        for start in range(0, len(parts), 7):
            for part, gathering in zip(
                parts[start : start + 7], mine.chords.count(parts[start : start + 7], f"{seed}"), strict=True
            ):
                if gathering.state == "complete":
                    assert [member.index for member in gathering.members] == list(range(size))
                    mine.keep(f"{part.chord} by {seed}", b"", 60.0)
                    mine.chords.close([part.chord], f"{seed}")
        mine.close()

    forked(*[lambda seed=seed: gather(seed) for seed in range(4)])
    completed = ask(url, "select split_part(name, ' ', 1), count(*) from taskq_documents where name like '% by %' group by 1")
    assert sorted(completed) == sorted((chord, 1) for chord in chords)
    assert ask(url, "select count(*) from taskq_members") == [(0,)]
