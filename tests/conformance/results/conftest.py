"""Every result backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.results.store import ResultStore
from tests.conformance.results.support import Backend

#: Each with the fixture that is its server, if it has one.
KINDS: dict[str, str | None] = {"sqlite": None, "redis": "redis", "postgresql": "postgres"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which backend this is."""
    name: str = request.param
    return name


@pytest.fixture
def backend(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Backend]:
    """The backend."""
    fixture = KINDS[kind]
    if fixture is None:
        backend = Backend(kind, f"sqlite:///{tmp_path}/results.db")
    else:
        server = request.getfixturevalue(fixture)
        backend = Backend(kind, server.url, server)
    yield backend
    backend.close()


@pytest.fixture
def store(backend: Backend) -> ResultStore:
    """A store of this backend."""
    return backend.open()
