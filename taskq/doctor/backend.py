"""The result backend: whether it keeps what it is given, and for as long as it should."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing

from taskq.config import masked
from taskq.doctor.finding import Finding, error, ok, warning
from taskq.doctor.patient import Patient
from taskq.duration import spelled
from taskq.errors import TaskqError
from taskq.results import open_store
from taskq.results.store import Condition

#: From how many seconds on the clocks of two machines are said to differ: what has expired is decided by either.
_SKEW, _GROSS_SKEW = 2.0, 60.0
#: How long a trial's document is kept, in seconds.
_TRIAL = 60.0


def backend(patient: Patient) -> Iterator[Finding]:
    """Whether the backend answers and can be written to, and whether its server is one that keeps results."""
    settings = patient.settings
    if settings.backend_url is None or settings.replies:
        text = "results go back to their callers as messages" if settings.replies else "results are off"
        yield ok("backend", f"{text}, and are kept nowhere")
        return
    name, document, began = f"taskq-trial-{uuid.uuid4().hex}", uuid.uuid4().bytes, time.monotonic()
    try:
        with closing(open_store(settings.backend_url, settings.result_ttl)) as store:
            condition = store.condition()
            store.keep(name, document, _TRIAL)
            stands = store.document(name)
    except TaskqError as failure:
        mend = "start it, open the network, correct the URL, or let this user write"
        yield error("backend", str(failure), f"{mend}; backend is set by: {settings.sources['backend']}")
        return
    where = masked(settings.backend_url)
    took = spelled(time.monotonic() - began)
    if stands != document:
        yield error("backend", f"{where} did not keep what was written", "name the server that is written to, not a copy of it")
    yield ok("backend", f"{condition.product} {condition.version} at {where} was written to and read in {took}")
    yield from clock(condition)
    yield from durability(condition)


def clock(condition: Condition) -> Iterator[Finding]:
    """Whether the server has the time that we have."""
    ahead = condition.ahead
    if ahead is None:
        return
    text = f"{condition.product}'s clock is {spelled(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this machine's"
    mend = "have both set by NTP: schedules, and the age of results, go by either"
    if abs(ahead) < _SKEW:
        yield ok("clock", text)
    elif abs(ahead) < _GROSS_SKEW:
        yield warning("clock", text, mend)
    else:
        yield error("clock", text, mend)


def durability(condition: Condition) -> Iterator[Finding]:
    """Whether what the server has confirmed stays."""
    options = condition.options
    match condition.product:
        case "Redis":
            yield from _redis(options)
        case "PostgreSQL":
            for name, value in options.items():
                if value == "off":
                    text = f"PostgreSQL runs with {name}=off: a crash loses results that were confirmed"
                    yield warning("backend", text, f"set {name} to on, at least for taskq's user")


def _redis(options: Mapping[str, str]) -> Iterator[Finding]:
    policy = options.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        text = f"Redis' maxmemory-policy is {policy}: short of memory, it throws away results, chords and what was scheduled"
        if options.get("maxmemory") == "0":
            yield warning("backend", f"{text}; there is no maxmemory yet", "set maxmemory-policy to noeviction")
        else:
            yield error("backend", text, "set maxmemory-policy to noeviction, or give taskq a Redis of its own")
    if options.get("aof_enabled") == "0":
        text = "Redis keeps no log (appendonly no): a restart loses what came since its last snapshot"
        yield warning("backend", text, "set appendonly to yes")
