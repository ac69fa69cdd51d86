"""What an operator may ask about a backend's server."""

from __future__ import annotations

import re

import pytest

from taskq.errors import BrokerError
from taskq.results.store import ResultStore
from tests.conformance.results.support import Backend

PRODUCTS = {"sqlite": "SQLite", "redis": "Redis", "postgresql": "PostgreSQL"}


def test_a_server_says_what_it_is_and_what_time_it_has(store: ResultStore, kind: str) -> None:
    condition = store.condition()
    assert condition.product == PRODUCTS[kind]
    assert re.match(r"\d+\.\d+", condition.version)
    if kind == "sqlite":
        assert condition.ahead is None
    else:
        assert condition.ahead == pytest.approx(0.0, abs=1.0), "it is this machine's clock"


def test_a_server_says_what_the_safety_of_results_depends_on(store: ResultStore, kind: str) -> None:
    options = store.condition().options
    if kind == "redis":
        assert options == {"maxmemory": "0", "maxmemory_policy": "noeviction", "aof_enabled": "1", "role": "master"}
    if kind == "postgresql":
        assert options == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@pytest.mark.parametrize("kind", ["redis", "postgresql"], indirect=True)
def test_a_server_that_is_away_is_an_error(backend: Backend) -> None:
    store = backend.open()
    store.condition()
    assert backend.server is not None
    backend.server.freeze()
    try:
        with pytest.raises(BrokerError):
            store.condition()
    finally:
        backend.server.thaw()
