"""Where a task is and what it waits for, out of the facts. Pure.

An answer says no more than is known: RabbitMQ can't look for a message, so that "it is in this queue" is then "it is in one of
these, if it was sent at all".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from taskq.broker.interface import Found, QueueStats
from taskq.duration import spelled
from taskq.evidence import Facts
from taskq.message import HISTORY, SENT, Message, dead_letter_queue
from taskq.plan import Plan
from taskq.step import CHAIN, CHORD

State = Literal[
    "finished",  # it has ended, well or badly
    "dead",  # its message is a dead letter
    "revoked",  # it will not run
    "running",  # a worker said that it began
    "held",  # at a worker: it runs, or is about to
    "delayed",  # its time has not come
    "paused",  # its queue is paused
    "unconsumed",  # no worker fetches from its queue
    "waiting",  # its turn has not come
    "blocked",  # another step of its workflow has not ended
    "pending",  # it waits, if it was sent: the broker can't tell
    "unknown",  # there is no trace of it
]
#: How late a delayed message may be, in seconds, before that says something.
_LATE = 2.0
_ENDED_WELL = ("SUCCESS", "IGNORED")


class Answer(msgspec.Struct, frozen=True):
    """Where a task is: ``text`` says it in a sentence, ``hint`` what one can do about it, ``details`` are for machines."""

    state: State
    text: str
    hint: str | None = None
    details: Mapping[str, Any] = {}


def explain(facts: Facts) -> Answer:
    """The answer that these facts give: of what may be said, the most certain."""
    for look in (_ended, _seen, _dead, _found, _started, _revoked, _blocked, _pending):
        if answer := look(facts):
            return answer
    return Answer("unknown", "there is no trace of it: it was never sent, or has ended and its result is not kept (any more)")


def _alive(facts: Facts) -> Found | None:
    """Its message, if that was not dead-lettered; the one that is furthest where there are several."""
    order = ("held", "ready", "delayed")
    alive = [one for one in facts.found or () if not one.queue.endswith(dead_letter_queue(""))]
    return min(alive, key=lambda one: order.index(one.state), default=None)


def _ended(facts: Facts) -> Answer | None:
    meta, alive = facts.meta, _alive(facts)
    if (
        meta is None
        or meta.get("status") in ("STARTED", "RETRY")
        or (facts.seen is not None and meta.get("status") == "FAILURE")
    ):
        return None
    if alive is not None and alive.message.attempt > (meta.get("attempt") or 0):
        # The end of an earlier attempt: it was replayed, or sent again under its id.
        return None
    status, result = str(meta.get("status")), meta.get("result")
    attempts = meta.get("attempts") or [{}]
    about: dict[str, Any] = {
        "status": status,
        "date_done": meta.get("date_done"),
        "worker": attempts[-1].get("worker"),
        "seconds": attempts[-1].get("seconds"),
        "attempts": len(meta.get("attempts") or ()),
    }
    if status in _ENDED_WELL:
        return Answer("finished", f"it has succeeded{_when(about)}", details=about)
    about["error"] = _error(result)
    if status == "FAILURE" and facts.letter is not None:
        return None
    word = "was revoked, or has expired" if status == "REVOKED" else "has failed"
    return Answer(
        "revoked" if status == "REVOKED" else "finished",
        f"it {word}{_when(about)}: {about['error']}",
        hint=f"taskq result {facts.id} shows the traceback" if meta.get("traceback") else None,
        details=about,
    )


def _when(about: Mapping[str, Any]) -> str:
    """At which moment, in which time, on which worker: what is known of it."""
    text = f" at {about['date_done']}" if about["date_done"] else ""
    if about["seconds"] is not None:
        text += f", after {spelled(about['seconds'])}"
    return text + (f", on {about['worker']}" if about["worker"] else "")


def _error(described: Any) -> str:
    if not isinstance(described, dict):
        return str(described)
    message = described.get("exc_message") or []
    text = ", ".join(map(str, message)) if isinstance(message, list) else str(message)
    return f"{described.get('exc_type')}: {text}" if text else str(described.get("exc_type"))


def _seen(facts: Facts) -> Answer | None:
    """What the worker says that has it."""
    seen = facts.seen
    if seen is None:
        return None
    revoked = _meanwhile(facts)
    about = {**msgspec.structs.asdict(seen), "revoked": facts.revoked is not None}
    if not seen.running:
        text = f"{seen.worker} has fetched it from queue {seen.queue!r}, and it waits there for a child{revoked}"
        return Answer("held", text, details=about)
    seconds = _since(facts, seen.since)
    return Answer(
        "running",
        f"it has been running{_for(seconds)}, in process {seen.pid} of {seen.worker}{revoked}",
        details={**about, "seconds": seconds},
    )


def _meanwhile(facts: Facts) -> str:
    return "; it was revoked meanwhile" if facts.revoked is not None else ""


def _since(facts: Facts, moment: Any) -> float | None:
    """How many seconds ago that was; None for what is no moment."""
    return round(max(0.0, facts.now - moment), 3) if isinstance(moment, (int, float)) else None


def _for(seconds: float | None) -> str:
    return "" if seconds is None else f" for {spelled(seconds)}"


def _dead(facts: Facts) -> Answer | None:
    letter = facts.letter
    if letter is None or _alive(facts) is not None:
        return None
    detail = f": {letter.detail}" if letter.detail else ""
    return Answer(
        "dead",
        f"it is among the dead letters of queue {letter.queue!r}, reason {letter.reason!r}{detail}",
        hint=f"taskq dead show {letter.queue} --id {facts.id}, and 'replay' in place of 'show' to have it run again",
        details={
            name: getattr(letter, name) for name in ("task", "queue", "reason", "detail", "crashes", "retries", "last_at")
        },
    )


def _found(facts: Facts) -> Answer | None:
    found = _alive(facts)
    if found is None:
        return None
    message = found.message
    about = {"queue": found.queue, "task": message.headers.get("task")}
    about |= {"retries": message.count("retries"), "crashes": message.crashes}
    if found.state == "held":
        return _held(facts, found, about)
    if facts.revoked is not None:
        return _revoked(facts)
    return _delayed(facts, found, about) if found.state == "delayed" else _ready(facts, found, about)


def _ready(facts: Facts, found: Found, about: Mapping[str, Any]) -> Answer:
    queue, waited = found.queue, _since(facts, found.message.headers.get(SENT))
    text = f"it waits in queue {queue!r}, behind {found.ahead or 0} others"
    text += f",{_for(waited)} so far" if waited is not None else ""
    stats = facts.queues.get(queue)
    consumers = stats.consumers if stats is not None else None
    about = {**about, "ahead": found.ahead, "waited": waited, "consumers": consumers}
    if queue in facts.paused:
        return Answer("paused", f"{text}; the queue is paused", f"taskq resume {queue}", about)
    if not consumers:
        return Answer("unconsumed", f"{text}; no worker fetches from the queue", _start(queue), about)
    return Answer("waiting", f"{text}; workers that fetch from the queue: {consumers}", details=about)


def _start(queue: str) -> str:
    return f"start one: taskq worker -A … -Q {queue}"


def _held(facts: Facts, found: Found, about: Mapping[str, Any]) -> Answer:
    started = _started(facts)
    if started is not None and (facts.meta or {}).get("attempt", 0) >= found.message.attempt:
        return msgspec.structs.replace(started, details={**about, **started.details})
    worker = "a worker" if found.holder is None else f"the worker with process id {found.holder}"
    return Answer(
        "held",
        f"{worker} has it, from queue {found.queue!r}: it runs there, or is about to{_meanwhile(facts)}",
        details={**about, "pid": found.holder, "revoked": facts.revoked is not None},
    )


def _delayed(facts: Facts, found: Found, about: Mapping[str, Any]) -> Answer:
    message, left = found.message, (found.due or 0.0) - facts.now
    what = f"its retry {message.count('retries')}" if message.count("retries") else "its time"
    when = f"comes in {spelled(left)}" if left > 0 else "has come"
    last = _last_error(message)
    text = f"{what} {when}, in queue {found.queue!r}" + (f"; it ended before with {last}" if last else "")
    about = {**about, "due": found.due, "seconds": round(left, 3), "last_error": last}
    if left < -_LATE:
        return Answer("unconsumed", f"{text}; no worker is up that would let it go", _start(found.queue), about)
    return Answer("delayed", text, details=about)


def _last_error(message: Message) -> str | None:
    """How the attempt before this one ended, of a message that is run again."""
    match message.headers.get(HISTORY):
        case [*_, {"ended": str(ended)}] if message.count("retries"):
            return ended
    return None


def _started(facts: Facts) -> Answer | None:
    meta = facts.meta or {}
    if meta.get("status") != "STARTED":
        return None
    result = meta.get("result")
    about: Mapping[str, Any] = result if isinstance(result, dict) else {}
    seconds = _since(facts, about.get("started"))
    where = f"in process {about.get('pid')} of worker {about.get('worker')}"
    if facts.workers is not None and facts.found is None:
        where += ", which does not answer, or has lost it"
    return Answer(
        "running",
        f"it has been running{_for(seconds)}, {where}{_meanwhile(facts)}",
        details={**about, "seconds": seconds},
    )


def _revoked(facts: Facts) -> Answer | None:
    revoked = facts.revoked
    if revoked is None:
        return None
    ago = f" {spelled(facts.now - revoked.at)} ago" if revoked.at else ""
    return Answer(
        "revoked",
        f"it was revoked{ago} and will not run; the worker that fetches it records that",
        details={"at": revoked.at, "terminate": revoked.terminate},
    )


def _blocked(facts: Facts) -> Answer | None:
    if facts.plan is None:
        return None
    before = _before(facts.plan, facts.id)
    if before is None:
        return None
    missing = [task for task in before if facts.statuses.get(str(task.id)) not in _ENDED_WELL]
    if not missing:
        return None
    named = [f"{task.task} ({task.id}, {facts.statuses.get(str(task.id), 'PENDING')})" for task in missing[:3]]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return Answer(
        "blocked",
        f"it waits for {len(missing)} of the {len(before)} tasks before it in its workflow: {', '.join(named)}{more}",
        hint=f"taskq workflow show {facts.id}",
        details={"waits_for": [task.id for task in missing], "of": len(before)},
    )


def _before(plan: Plan, task_id: str) -> list[Plan] | None:
    """The tasks that have to end before this one can begin, or this group has ended; None where the plan has no such id."""
    if plan.id == task_id:
        return list(plan.tasks()) if plan.kind else []
    for number, step in enumerate(plan.steps):
        before = _before(step, task_id)
        if before is not None:
            in_turn = plan.kind == CHAIN or (plan.kind == CHORD and number == len(plan.steps) - 1)
            return [task for earlier in plan.steps[:number] for task in earlier.tasks()] + before if in_turn else before
    return None


def _pending(facts: Facts) -> Answer | None:
    """What there is to say where the broker can't look for a message, and no worker that answers has it."""
    if facts.found is not None or not facts.queues:
        return None
    described = [_described(facts, name, stats) for name, stats in facts.queues.items()]
    asked = "no worker that answers has it, and " if facts.workers else ""
    return Answer(
        "pending",
        f"it waits, if it was sent at all: {asked}the broker can't look for it. {'. '.join(described)}",
        hint="--queue says which queue to look at" if len(described) > 1 else None,
        details={
            "queues": {name: stats and msgspec.structs.asdict(stats) for name, stats in facts.queues.items()},
            "workers": facts.workers,
        },
    )


def _described(facts: Facts, queue: str, stats: QueueStats | None) -> str:
    if stats is None:
        return f"Queue {queue!r} does not exist"
    ready = f"Queue {queue!r} has {stats.ready} ready"
    if queue in facts.paused:
        return f"{ready}, and is paused"
    if facts.workers is not None:
        count = sum(queue in queues for queues in facts.workers.values())
        return f"{ready}, and {count or 'no'} worker{'s' * (count != 1)} that answer{'s' * (count == 1)}"
    if stats.consumers:
        return f"{ready}, and {stats.consumers} consumers"
    return f"{ready}, and no worker fetching: none is up, or all are busy"
