"""The tasks of the chaos suite: each records its start and its end in the ledger, which no process of taskq's writes for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from taskq import Attempt, TaskQ
from taskq.errors import BrokerError
from tests.apps.traces import trace

app = TaskQ("chaos")


@contextmanager
def recorded(attempt: Attempt) -> Iterator[None]:
    """The ledger's lines about one run; without the second one, something ended its process."""
    trace(
        "started",
        id=attempt.id,
        task=attempt.task,
        retries=attempt.retries,
        crashes=attempt.crashes,
        redelivered=attempt.redelivered,
        group=os.getsid(0),
    )
    try:
        yield
    finally:
        trace("finished", id=attempt.id)


@app.task(name="work", bind=True)
def work(attempt: Attempt, key: str, seconds: float = 0.0, ballast: str = "") -> str:
    """Takes so many seconds; ``ballast`` makes its message larger."""
    with recorded(attempt):
        time.sleep(seconds)
    return key


@app.task(name="relay", bind=True)
def relay(attempt: Attempt, key: str, left: int) -> str:
    """Sends itself on, ``left`` times; what the broker confirms to it is a confirmed call like any other."""
    with recorded(attempt):
        since = time.monotonic()
        if left:
            try:
                sent = relay.delay(key, left - 1)
            except BrokerError as error:
                trace("refused", error=repr(error))
            else:
                trace("confirmed", ids=[sent.id], keys=[key], task="relay", since=since)
    return key


class Flaw(Exception):
    """What a flaky task raises."""


@app.task(name="flaky", bind=True, autoretry_for=(Flaw,), default_retry_delay=0.2, max_retries=5)
def flaky(attempt: Attempt, key: str, failures: int) -> str:
    """Raises so many times."""
    with recorded(attempt):
        if attempt.retries < failures:
            raise Flaw(attempt.retries)
    return key


@app.task(name="once", bind=True, acks_late=False)
def once(attempt: Attempt, key: str, seconds: float) -> str:
    """Must never run twice."""
    with recorded(attempt):
        time.sleep(seconds)
    return key


@app.task(name="endless", bind=True, time_limit=0.5, on_timeout="fail")
def endless(attempt: Attempt, key: str) -> str:
    """Never ends by itself."""
    with recorded(attempt):
        while True:
            signal.pause()


@app.task(name="poison", bind=True)
def poison(attempt: Attempt, how: str) -> None:
    """Ends its own process: ``exit``, or the name of a signal."""
    with recorded(attempt):
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.Signals[how])
        signal.pause()


@app.task(name="plague", bind=True)
def plague(attempt: Attempt) -> None:
    """Ends its whole worker, supervisor first, as Kubernetes does when a container is out of memory."""
    with recorded(attempt):
        os.kill(os.getsid(0), signal.SIGKILL)
        signal.pause()
