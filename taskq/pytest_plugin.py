"""The pytest plugin: fixtures for applications that use taskq. Until a test asks for one of them, it does nothing.

Everything is imported inside the fixtures, so that whoever has taskq installed pays nothing for a plugin they don't use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.testing import Worker


def pytest_addoption(parser: pytest.Parser) -> None:
    """The app that the fixtures are about."""
    parser.addini("taskq_app", "the app that taskq's fixtures are about, as module:attribute, like shop.app:app", default="")


@pytest.fixture
def taskq_app(request: pytest.FixtureRequest) -> Iterator[TaskQ]:
    """The app of the ini option ``taskq_app``, with an empty broker and empty results of its own, in memory."""
    from taskq.cli.loading import load_app
    from taskq.testing import in_memory

    spec: str = request.config.getini("taskq_app")
    if not spec:
        raise pytest.UsageError(
            "the fixture taskq_app needs to know your app: set the ini option, as in taskq_app = shop.app:app"
        )
    with in_memory(load_app(spec)) as app:
        yield app


@pytest.fixture
def taskq_worker(taskq_app: TaskQ) -> Iterator[Worker]:
    """A worker of ``taskq_app``, which runs tasks in the test's own thread, when the test calls ``run`` or ``advance``."""
    from taskq.testing import worker

    with worker(taskq_app, background=False) as made:
        yield made
