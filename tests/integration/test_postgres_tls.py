"""TLS to PostgreSQL, with an authority of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.errors import BackendError
from taskq.results import open_store
from taskq.results.store import Record
from tests.postgres_server import Postgres, running_postgres


@pytest.fixture(scope="module")
def server(certificates: dict[str, Path]) -> Iterator[Postgres]:
    with running_postgres(tls=certificates) as server:
        yield server


def test_tls_checks_authority_and_host(server: Postgres, certificates: dict[str, Path]) -> None:
    here = server.url.partition("?")[0]
    known = f"sslmode=verify-full&sslrootcert={certificates['cacertfile']}"
    end = Record("a", "SUCCESS", b"{}", 1)
    store = open_store(f"{here.replace('127.0.0.1', 'localhost')}?{known}", 60.0)
    store.store([end])
    assert store.fetch([end.id]) == [end]
    store.close()
    for url in (f"{here}?{known}", f"{here.replace('127.0.0.1', 'localhost')}?sslmode=verify-full&sslrootcert=system"):
        with pytest.raises(BackendError, match=r"certificate|authority"):
            open_store(url, 60.0).fetch([end.id])
