"""Fixtures that several files of cases share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.results.support import Backend


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each backend."""
    servers = {"redis": "redis", "postgresql": "postgres"}
    server = request.getfixturevalue(servers[request.param]) if request.param in servers else None
    backend = Backend(request.param, server.url if server is not None else f"sqlite:///{tmp_path}/results.db", server)
    yield backend
    backend.close()
