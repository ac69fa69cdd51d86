"""An application whose tasks go wrong in every way that taskq promises to end well."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

from taskq import Attempt, Ignore, Reject, SoftTimeLimitExceeded, TaskQ
from tests.apps.traces import pass_gate, trace

app = TaskQ("trouble")
FOREVER = 3600.0
#: What holds the interpreter lock while it sleeps.
locked = ctypes.PyDLL(None)


def tell(event: str, attempt: Attempt, **fields: Any) -> None:
    """Leave a trace of this attempt."""
    trace(event, id=attempt.id, retries=attempt.retries, crashes=attempt.crashes, number=attempt.number, **fields)


# Retries


@app.task(
    name="flaky",
    bind=True,
    autoretry_for=(OSError,),
    dont_autoretry_for=(FileNotFoundError,),
    default_retry_delay=0,
    max_retries=3,
)
def flaky(attempt: Attempt, failures: int, kind: str = "OSError") -> int:
    """Raises so many times; returns how often it has."""
    tell("flaky", attempt, history=[past.ended for past in attempt.history])
    if attempt.retries < failures:
        kinds = {"OSError": OSError, "FileNotFoundError": FileNotFoundError, "ValueError": ValueError}
        raise kinds[kind](f"no. {attempt.retries}")
    return attempt.retries


@app.task(name="again", bind=True, max_retries=5)
def again(attempt: Attempt, times: int, countdown: float = 0.0, most: int | None = None) -> int:
    """Asks to be run again so many times."""
    tell("again", attempt)
    if attempt.retries < times:
        raise attempt.retry(exc=ValueError(f"attempt {attempt.number}"), countdown=countdown, max_retries=most)
    return attempt.retries


def is_busy(error: BaseException) -> bool:
    """What ``choosy`` retries."""
    return "busy" in str(error)


@app.task(name="choosy", bind=True, retry_on=is_busy, default_retry_delay=0)
def choosy(attempt: Attempt, text: str) -> str:
    """Raises this the first time."""
    tell("choosy", attempt)
    if not attempt.retries:
        raise RuntimeError(text)
    return text


@app.task(name="backing_off", bind=True, autoretry_for=(ValueError,), retry_backoff=1, retry_jitter=False, max_retries=2)
def backing_off(attempt: Attempt) -> None:
    """Fails for ever, after 1 and 2 seconds again."""
    tell("backing_off", attempt)
    raise ValueError("again")


@app.task(name="refuse", bind=True)
def refuse(attempt: Attempt, requeue: bool, times: int = 1) -> str:
    """Rejects its message, so many times where it goes back to the queue."""
    tell("refuse", attempt)
    if not requeue or attempt.deliveries < times:
        raise Reject("not for me", requeue=requeue)
    return "accepted"


@app.task(name="shrug", bind=True)
def shrug(attempt: Attempt) -> None:
    """Asks for no record."""
    tell("shrug", attempt)
    raise Ignore


# Limits


def spin() -> None:
    """For ever, in Python."""
    while True:
        pass


def hold_lock() -> None:
    """For ever, in C, holding the interpreter lock."""
    while True:
        locked.usleep(3_600_000_000)


def read_dead_socket() -> None:
    """Waits for an answer that never comes."""
    ours, _theirs = socket.socketpair()
    ours.recv(1)


def catch_everything() -> None:
    """Ends for no exception."""
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:  # noqa: BLE001  # that is what it is about
            trace("caught")


def backtrack() -> None:
    """A regular expression that takes longer than the universe has."""
    re.match(r"(a+)+$", "a" * 64 + "b")


WAYS = {
    "spin": spin,
    "sleep": lambda: time.sleep(FOREVER),
    "lock": hold_lock,
    "socket": read_dead_socket,
    "catch": catch_everything,
    "regex": backtrack,
}


@app.task(name="hang", bind=True)
def hang(attempt: Attempt, way: str) -> None:
    """Never ends by itself."""
    tell("hang", attempt, way=way)
    WAYS[way]()


@app.task(name="limited", bind=True, time_limit=0.5)
def limited(attempt: Attempt) -> None:
    """Has a limit of its own."""
    tell("limited", attempt)
    spin()


@app.task(name="hang_once", bind=True, time_limit=0.4, on_timeout="retry", default_retry_delay=0, max_retries=2)
def hang_once(attempt: Attempt, times: int) -> int:
    """Runs into its limit so many times."""
    tell("hang_once", attempt)
    if attempt.retries < times:
        spin()
    return attempt.retries


@app.task(name="tidy", bind=True, soft_time_limit=0.3, time_limit=10)
def tidy(attempt: Attempt) -> str:
    """Ends in order when its time is over."""
    tell("tidy", attempt)
    try:
        spin()
    except SoftTimeLimitExceeded:
        return "tidied up"
    return "never"


@app.task(name="untidy", bind=True, soft_time_limit=0.3)
def untidy(attempt: Attempt) -> None:
    """Is ended by its soft limit."""
    tell("untidy", attempt)
    spin()


@app.task(name="quick", bind=True, soft_time_limit=0.2, time_limit=0.4)
def quick(attempt: Attempt, key: str, seconds: float = 0.0) -> str:
    """Stays within its limits."""
    tell("quick", attempt, key=key)
    time.sleep(seconds)
    return key


@app.task(name="devour", bind=True)
def devour(attempt: Attempt, megabytes: int, seconds: float = 60.0) -> int:
    """Takes so much memory and keeps it for a while."""
    tell("devour", attempt)
    eaten = b"x" * (megabytes << 20)
    time.sleep(seconds)
    return len(eaten)


@app.task(name="leak", bind=True)
def leak(attempt: Attempt, megabytes: int) -> int:
    """Takes so much memory for as long as its process lives."""
    kept.append(b"x" * (megabytes << 20))
    tell("leak", attempt)
    return os.getpid()


kept: list[bytes] = []


@app.task(name="whereabouts")
def whereabouts(seconds: float = 0.0) -> int:
    """The process that it runs in."""
    time.sleep(seconds)
    return os.getpid()


# Crashes


@app.task(name="once", bind=True, acks_late=False)
def once(attempt: Attempt, gate: str) -> str:
    """Must never run twice; runs until the gate opens."""
    tell("once", attempt)
    pass_gate(gate)
    return gate


@app.task(name="fragile", bind=True, on_worker_lost="fail")
def fragile(attempt: Attempt) -> None:
    """Takes its process down, and does not want to run again."""
    tell("fragile", attempt)
    os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()


@app.task(name="segfault", bind=True)
def segfault(attempt: Attempt) -> None:
    """Reads from nowhere."""
    tell("segfault", attempt)
    ctypes.string_at(0)


@app.task(name="poison", bind=True)
def poison(attempt: Attempt, seconds: float = 0.0) -> None:
    """Takes the whole worker down."""
    tell("poison", attempt)
    time.sleep(seconds)
    # It leads the session, and the others end with it.
    os.kill(os.getsid(0), signal.SIGKILL)
    signal.pause()


@app.task(name="good", bind=True)
def good(attempt: Attempt, key: str, seconds: float = 0.0) -> str:
    """Does no harm."""
    tell("good", attempt, key=key)
    time.sleep(seconds)
    return key


@app.task(name="wait", bind=True)
def wait(attempt: Attempt, gate: str) -> str:
    """Runs until the gate opens."""
    tell("wait", attempt)
    try:
        pass_gate(gate)
    except BaseException as error:
        trace("interrupted", error=type(error).__name__)
        raise
    return Path(gate).name
