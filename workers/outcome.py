"""An outcome: what became of a delivery, as a value. ``settle`` carries it out; nothing else does."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from taskq.message import Message, Publication, dead_letter_queue
from taskq.results.store import Record, Status

#: A dead letter says why in these headers, beside the headers that the message had.
DEAD_REASON, DEAD_DETAIL, DEAD_QUEUE, DEAD_AT, DEAD_WORKER = (
    "tq-dead-reason",
    "tq-dead-detail",
    "tq-dead-queue",
    "tq-dead-at",
    "tq-dead-worker",
)

Event = Literal["succeeded", "failed", "revoked", "delayed", "dead-lettered", "given back"]


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of a delivery: what to publish next, what to record, and then whether to ack it or to give it back."""

    event: Event
    publish: tuple[Publication, ...] = ()
    record: Record | None = None
    requeue: bool = False


SUCCEEDED = Outcome("succeeded")
GIVEN_BACK = Outcome("given back", requeue=True)


def record(task_id: str, status: Status, result: Any, traceback: str | None = None, parent_id: str | None = None) -> Record:
    """The end of a task in Celery's result format; ``result`` must be plain JSON values already."""
    meta = {
        "status": status,
        "result": result,
        "traceback": traceback,
        "children": [],
        "date_done": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "task_id": task_id,
        "parent_id": parent_id,
    }
    return Record(task_id, status, msgspec.json.encode(meta))


def failure(exc_type: str, exc_module: str, args: list[Any]) -> dict[str, Any]:
    """An exception as Celery's results describe it."""
    return {"exc_type": exc_type, "exc_message": args, "exc_module": exc_module}


def dead_letter(queue: str, message: Message, reason: str, detail: str, *, worker: str, record_end: bool) -> Outcome:
    """The message goes to the queue's dead letters, with the reason, and its task ends as failed."""
    headers = {
        DEAD_REASON: reason,
        DEAD_DETAIL: detail,
        DEAD_QUEUE: queue,
        DEAD_AT: time.time(),
        DEAD_WORKER: worker,
    }
    # Priority and delay belong to the queue it came from; a dead-letter queue has neither.
    letter = msgspec.structs.replace(message, headers={**message.headers, **headers}, priority=None)
    task_id = message.headers.get("id") or message.correlation_id
    end = None
    if record_end and isinstance(task_id, str):
        described = failure("DeadLettered", "taskq.errors", [f"{reason}: {detail}"])
        end = record(task_id, "FAILURE", described)
    return Outcome("dead-lettered", (Publication(dead_letter_queue(queue), letter),), end)
