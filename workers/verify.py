"""Verification: what an outcome publishes is looked at where it is made, before the child reports it.

What the broker would refuse for good, or the supervisor could not read, is its own task's fault, and becomes that task's end: a
dead letter that says why. It is composed of less and less until it passes; the last one holds nothing but what has arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from taskq import log
from taskq.broker import checker
from taskq.config import Settings
from taskq.describe import bounded, repr_of, text_of
from taskq.errors import MessageTooLarge
from taskq.launch import Route
from taskq.message import DEAD_DETAIL, DEAD_TRACEBACK, HISTORY, Message, Publication
from taskq.results.store import Record
from taskq.workers import pipe
from taskq.workers.ending import ended_badly
from taskq.workers.outcome import Outcome, dead_letter, failure, record

#: The reason of the dead letter of a task that has ended, but for what follows it.
FOLLOW_UP_REFUSED = "follow-up refused"
_ENDED_BADLY = frozenset({"failed", "revoked", "dead-lettered"})
#: The longest id and name that a message which is made anew says it is of, in bytes.
_LONGEST_NAME = 255
_SHORT_DETAIL = 200

logger = log.get_logger("taskq.task")


class Verifier:
    """Sees to it, for one worker, that outcomes can take effect."""

    def __init__(self, settings: Settings, worker: str, route: Route) -> None:
        self._check = checker(settings)
        self._most_bytes = settings.max_message_bytes
        self._results = settings.backend_url is not None
        self._worker = worker
        self._route = route

    def __call__(self, queue: str, message: Message, outcome: Outcome) -> Outcome:
        """The outcome of this message, which came from this queue, or what can be had of it. Raises nothing."""
        if (error := self._refusal(message, outcome)) is None:
            return outcome
        detail = f"a follow-up cannot be sent: {text_of(error)}"
        logger.error("outcome_refused", **_about(queue, message), event_refused=outcome.event, detail=detail)
        repairs: tuple[Callable[[Outcome], Outcome], ...] = (
            _trimmed,
            lambda bad: bad if bad.event in _ENDED_BADLY else self.dead_letter(queue, message, FOLLOW_UP_REFUSED, detail),
            lambda bad: self._without_what_is_refused(queue, message, bad, detail),
        )
        for repair in repairs:
            outcome = repair(outcome)
            if self._refusal(message, outcome) is None:
                return outcome
        return self.bare(queue, message, FOLLOW_UP_REFUSED, detail)

    def dead_letter(
        self,
        queue: str,
        message: Message,
        reason: str,
        detail: str,
        *,
        described: dict[str, Any] | None = None,
        end: Record | None = None,
        text: str | None = None,
    ) -> Outcome:
        """The message is dead, and what was to follow has failed; ``described`` and ``end`` are of this death by default."""
        logger.error("task_dead_lettered", **_about(queue, message), reason=reason, detail=detail)
        if described is None:
            described = failure("DeadLettered", [f"{reason}: {detail}"])
            end = self._end(message, described)
        outcome = dead_letter(queue, message, reason, detail, worker=self._worker, end=end, traceback=text)
        try:
            return ended_badly(outcome, message, described, self._route, traceback=text)
        except Exception as error:  # noqa: BLE001  # a message can say anything of what follows; its own end must not depend on it
            logger.error("workflow_not_told", **_about(queue, message), error=repr_of(error))
            return outcome

    def bare(self, queue: str, message: Message, reason: str, detail: str) -> Outcome:
        """A dead letter that can always be sent and reported: the body as it came, and why it is dead."""
        names = {name: message.headers.get(name) for name in ("id", "task")}
        kept = {name: text for name, text in names.items() if isinstance(text, str) and text == bounded(text, _LONGEST_NAME)}
        letter = Message(
            headers=kept, body=message.body, content_type=None, content_encoding=None, correlation_id=kept.get("id")
        )
        end = self._end(letter, failure("DeadLettered", [f"{reason}: {detail}"]))
        return dead_letter(queue, letter, reason, detail, worker=self._worker, end=end)

    def _end(self, message: Message, described: dict[str, Any]) -> Record | None:
        try:
            return record(message, "FAILURE", described) if self._results else None
        except Exception as error:  # noqa: BLE001  # a message's headers can hold anything; its dead letter must not depend on them
            logger.error("end_not_recorded", task_id=message.headers.get("id"), error=repr_of(error))
            return None

    def _refusal(self, message: Message, outcome: Outcome) -> Exception | None:
        """Why the outcome can't take effect; None if it can."""
        try:
            pipe.check(outcome)
            for publication in outcome.publish:
                self._check_one(message, publication)
        except Exception as error:  # noqa: BLE001  # whatever is odd about it, it is this outcome's fault, and no one else's
            return error
        return None

    def _check_one(self, message: Message, publication: Publication) -> None:
        published = publication.message
        if published.body is message.body:
            # The broker has carried this priority once: it is a copy of what came.
            publication = msgspec.structs.replace(publication, message=msgspec.structs.replace(published, priority=None))
        elif len(published.body) > self._most_bytes:
            raise MessageTooLarge(
                f"task {published.headers.get('task')!r}: its message is {len(published.body)} bytes, over "
                f"max_message_bytes={self._most_bytes}; store the data elsewhere and return where it is"
            )
        self._check(publication)

    def _without_what_is_refused(self, queue: str, message: Message, outcome: Outcome, detail: str) -> Outcome:
        """A task that has ended badly is dead; what can be sent of what follows is sent all the same."""
        outcome = _trimmed(outcome)
        if outcome.event == "dead-lettered":
            letter, *others = outcome.publish
        else:
            end = outcome.record
            [letter] = _trimmed(dead_letter(queue, message, FOLLOW_UP_REFUSED, detail, worker=self._worker, end=end)).publish
            others = list(outcome.publish)
        sound = [other for other in others if self._refusal(message, Outcome(outcome.event, (other,))) is None]
        return msgspec.structs.replace(outcome, event="dead-lettered", publish=(letter, *sound))


def _trimmed(outcome: Outcome) -> Outcome:
    """The outcome without what we have added to the headers ourselves, and nobody needs."""
    publish = [
        msgspec.structs.replace(publication, message=_without_extras(publication.message)) for publication in outcome.publish
    ]
    return msgspec.structs.replace(outcome, publish=tuple(publish))


def _without_extras(message: Message) -> Message:
    message = message.without(HISTORY, DEAD_TRACEBACK)
    detail = message.headers.get(DEAD_DETAIL)
    return message.with_headers(**{DEAD_DETAIL: bounded(detail, _SHORT_DETAIL)}) if isinstance(detail, str) else message


def _about(queue: str, message: Message) -> dict[str, Any]:
    return {"task_id": message.headers.get("id"), "task": message.headers.get("task"), "queue": queue}
