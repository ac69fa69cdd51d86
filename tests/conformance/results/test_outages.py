"""Backends that are servers: away, silent and back again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from taskq.errors import BackendError
from taskq.results.store import Barrier, Part, Record, ResultStore
from tests.conformance.results.conftest import KINDS
from tests.conformance.results.support import Backend, Server, chords_of, fetched, fresh, record

pytestmark = pytest.mark.parametrize("kind", [kind for kind, server in KINDS.items() if server], indirect=True)


@pytest.fixture
def server(backend: Backend) -> Iterator[Server]:
    """The backend's server, which runs again at the end."""
    assert backend.server is not None
    yield backend.server
    backend.server.restart()


def calls(store: ResultStore) -> list[Callable[[], Any]]:
    chords = chords_of(store)
    return [
        lambda: store.store([record(fresh())]),
        lambda: store.fetch([fresh()]),
        lambda: store.wait(fresh(), 0.05),
        lambda: store.forget([fresh()]),
        lambda: store.keep(fresh(), b"", 5.0),
        lambda: store.document(fresh()),
        lambda: chords.open([Barrier(fresh(), 2)]),
        lambda: chords.count([Part(fresh(), 0, fresh(), "SUCCESS", b"1")], "worker"),
        lambda: chords.close([fresh()], "worker"),
    ]


def test_a_server_that_is_away_is_told_of_quickly_and_found_again(backend: Backend, store: ResultStore, server: Server) -> None:
    kept = record(fresh())
    store.store([kept])
    server.kill()
    for call in [*calls(store), *calls(backend.open())]:
        started = time.monotonic()
        with pytest.raises(BackendError):
            call()
        assert time.monotonic() - started < 2.5
    server.start()
    for call in calls(store):
        call()
    assert fetched(store, kept.id) == kept


def test_a_server_that_is_silent_is_told_of_quickly(store: ResultStore, server: Server) -> None:
    kept = record(fresh())
    store.store([kept])
    server.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(BackendError):
            store.fetch([kept.id])
        assert time.monotonic() - started < 4.0
    finally:
        server.thaw()
    assert fetched(store, kept.id) == kept


def test_a_connection_that_was_idle_during_a_restart_costs_no_error(store: ResultStore, server: Server) -> None:
    kept = record(fresh())
    store.store([kept])
    server.restart()
    assert fetched(store, kept.id) == kept
    store.store([record(kept.id, value="again")])


def test_whoever_waits_is_told_after_a_restart(store: ResultStore, server: Server) -> None:
    end = record(fresh())
    got: list[Record | None] = []

    def wait() -> None:
        while not got:
            # It may have to look in the moment in which the server is away.
            with suppress(BackendError):
                got.append(store.wait(end.id, 30.0))

    thread = threading.Thread(target=wait)
    thread.start()
    server.restart()
    stored = time.monotonic()
    store.store([end])
    thread.join()
    assert got == [end]
    assert time.monotonic() - stored < 5.0
