"""Every broker, each as the settings that choose it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.broker import open_session
from taskq.broker.interface import Session
from taskq.config import Settings
from tests.conftest import staged, url_of
from tests.support import Stage

KINDS: dict[str, dict[str, Any]] = {
    "sqlite": {},
    "quorum": {"queue_type": "quorum"},
    "classic": {"queue_type": "classic", "queue_max_priority": 9},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker this is."""
    name: str = request.param
    return name


@pytest.fixture
def stage(request: pytest.FixtureRequest, kind: str, queue: str, tmp_path: Path) -> Iterator[Stage]:
    """The broker, with a queue of one's own."""
    url = url_of(request, tmp_path, "sqlite" if kind == "sqlite" else "amqp")
    yield from staged(Stage(url, queue, tmp_path, KINDS[kind]))


@pytest.fixture
def settings(stage: Stage) -> Settings:
    """The settings that choose the broker."""
    return stage.effective()


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    """A publishing session."""
    session = open_session(settings, 5.0)
    yield session
    session.close()
