"""The link connects again whatever went wrong, and waits longer each time where a connection served nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from taskq import config
from taskq.broker import open_consumer
from taskq.broker.interface import Consumer
from taskq.errors import ConfigurationError, QueueMismatch
from taskq.workers.link import Link


class Opening:
    """Raises these, one after the other, and then gives a consumer of a file that is there."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []
        self.file = "nowhere"

    def __call__(self) -> Consumer:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return open_consumer(config.load({"broker": f"sqlite:///{self.file}"}, environment={}), [])


@pytest.fixture
def link_to() -> Iterator[Callable[[Callable[[], Consumer]], Link]]:
    links: list[Link] = []

    def make(opening: Callable[[], Consumer]) -> Link:
        links.append(Link(opening, "sqlite:///nowhere", lambda: None))
        return links[-1]

    yield make
    for link in links:
        link.close()


def test_an_error_that_nobody_has_foreseen_does_not_end_the_tries(link_to: Any) -> None:
    opening = Opening(ValueError("a substring is not found"), KeyError("x"), ConfigurationError("and this no retry mends"))
    link = link_to(opening)
    link.connect()
    assert str(link.arrived.get(timeout=10.0)) == "and this no retry mends"
    assert len(opening.times) == 3


def test_what_the_broker_refuses_later_is_waited_for(link_to: Any, tmp_path: Path) -> None:
    opening = Opening()
    opening.file = f"{tmp_path}/taskq.db"
    link = link_to(opening)
    link.connect()
    link.arrived.get(timeout=10.0).close()
    opening.errors += [QueueMismatch("queue 'b' exists with another type"), QueueMismatch("still")]
    link.connect()
    link.arrived.get(timeout=10.0).close()
    assert len(opening.times) == 4


def test_connections_that_serve_nobody_are_made_later_each_time(link_to: Any) -> None:
    opening = Opening(*[ConfigurationError("no")] * 5)
    link = link_to(opening)
    for _ in range(4):
        link.connect(at_once=False)
        link.arrived.get(timeout=10.0)
    first, second, third, fourth = opening.times
    assert second - first < third - second < fourth - third
    link.connect()
    asked = time.monotonic()
    link.arrived.get(timeout=10.0)
    assert opening.times[-1] - asked < fourth - third


def test_a_closed_link_connects_no_more(link_to: Any) -> None:
    link = link_to(Opening(ConfigurationError("no")))
    link.close()
    link.connect()
    with pytest.raises(Empty):
        link.arrived.get(timeout=0.2)
    assert all(thread.name != "taskq-link" or thread.daemon for thread in threading.enumerate())
