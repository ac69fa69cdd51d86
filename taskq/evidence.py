"""What backend and broker know of one task: facts, each asked for on its own, so that one that can't be had hides no other."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from taskq import dead
from taskq.app import TaskQ
from taskq.broker import open_caller
from taskq.broker.interface import Found, QueueStats
from taskq.broker.pidbox import EVERY_WORKER
from taskq.control import Revoke, Standing
from taskq.dead import DeadLetter
from taskq.errors import BrokerError
from taskq.message import dead_letter_queue
from taskq.plan import Plan


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of a task that it has: whether it runs, in which process, since when in seconds since the epoch."""

    worker: str
    queue: str
    task: str | None
    running: bool
    pid: int | None
    since: float | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task.

    ``meta`` is its record in Celery's format, None where there is none. ``found`` are its messages, None where the broker can't
    look for them. ``queues`` are those where its message may be. ``plan`` is its workflow, ``statuses`` tells of the tasks
    in it that have begun. ``seen`` is what the worker says that has it, ``workers`` are those that answered, with the queues
    that each consumes; None where they were not asked. ``unasked`` says of whom something could not be had, and why.
    """

    id: str
    now: float
    meta: Mapping[str, Any] | None = None
    found: tuple[Found, ...] | None = None
    letter: DeadLetter | None = None
    revoked: Revoke | None = None
    paused: Collection[str] = ()
    queues: Mapping[str, QueueStats | None] = {}
    plan: Plan | None = None
    statuses: Mapping[str, str] = {}
    seen: Seen | None = None
    workers: Mapping[str, tuple[str, ...]] | None = None
    unasked: tuple[str, ...] = ()


def gather(app: TaskQ, task_id: str, queue: str | None = None, *, timeout: float = 1.0) -> Facts:
    """What backend, broker and workers know of the task; ``queue`` is where its message would be, if that is known.

    The workers have ``timeout`` seconds to answer. Raises ``BrokerError`` where neither backend nor broker can be asked.
    """
    unasked: dict[str, BrokerError] = {}
    known: dict[str, Any] = {}

    def ask(name: str, facts: Iterator[tuple[str, Any]]) -> None:
        try:
            # What came before the error is kept.
            known.update(facts)
        except BrokerError as error:
            unasked[name] = error

    if app.settings.keeps_results:
        ask("the result backend", _ask_backend(app, task_id))
    ask("the broker", _ask_broker(app, task_id, queue or _queue_of(app, known.get("plan"), task_id)))
    if (broker := unasked.get("the broker")) is None:
        # What has failed may have been replayed since; any other end is the end.
        if (known.get("meta") or {}).get("status") in (None, "STARTED", "RETRY", "FAILURE") and known.get("letter") is None:
            ask("the workers", _ask_workers(app, task_id, timeout))
    elif "meta" not in known:
        raise broker
    texts = tuple(f"{name} could not be asked: {error}" for name, error in unasked.items())
    return Facts(id=task_id, now=time.time(), unasked=texts, **known)


def _ask_backend(app: TaskQ, task_id: str) -> Iterator[tuple[str, Any]]:
    meta = app.result(task_id).meta()
    yield "meta", None if meta["status"] == "PENDING" else meta
    plan, records = app.workflow(task_id)
    yield "plan", plan
    yield "statuses", {record.id: record.status for record in records}


def _ask_broker(app: TaskQ, task_id: str, queue: str | None) -> Iterator[tuple[str, Any]]:
    standing = Standing()
    standing.fold(app.publisher.controls())
    yield "revoked", standing.revoked.get(task_id)
    yield "paused", frozenset(standing.paused)
    found = app.publisher.find(task_id)
    names = (queue,) if queue else app.queue_names()
    if found is None:
        yield "letter", next(app.dead_letters(queue, ids=[task_id]), None)
    else:
        yield "found", tuple(found)
        names = tuple(dict.fromkeys(one.queue for one in found))
        suffix = dead_letter_queue("")
        letters = (dead.read(one.message, one.queue.removesuffix(suffix)) for one in found if one.queue.endswith(suffix))
        yield "letter", next(letters, None)
    yield "queues", {name: app.publisher.stats(name) for name in names}


def _ask_workers(app: TaskQ, task_id: str, timeout: float) -> Iterator[tuple[str, Any]]:
    with open_caller(app.settings) as caller:
        asked = caller.ask("query_task", {"ids": [task_id]}, pattern=EVERY_WORKER, timeout=timeout)
        yield "seen", next((_seen(node, answer[task_id]) for node, answer in asked.items() if task_id in answer), None)
        told = caller.ask("active_queues", nodes=tuple(asked), timeout=timeout) if asked else {}
    yield (
        "workers",
        {node: tuple(queue["name"] for queue in queues) for node, queues in told.items() if isinstance(queues, list)},
    )


def _seen(worker: str, told: Any) -> Seen:
    state, info = told
    return Seen(
        worker=worker,
        queue=info["delivery_info"]["routing_key"],
        task=info["name"],
        running=state == "active",
        pid=info["worker_pid"],
        since=info["time_start"],
    )


def _queue_of(app: TaskQ, plan: Plan | None, task_id: str) -> str | None:
    """The queue that the task of a workflow goes to, as far as this app knows."""
    tasks = plan.tasks() if plan is not None else ()
    task = next((task.task for task in tasks if task.id == task_id), None)
    return None if task is None else app.routes().get(task, app.settings.default_queue)
