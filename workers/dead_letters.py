"""Dead letters: how the end of a message is composed that no worker will run any more. Pure; a child and the supervisor ask.

A dead letter can always be written, because a bare one leaves out whatever may be the trouble: what was to follow the task, and
every header but the two that say which task it was.
"""

from __future__ import annotations

from typing import Any

from taskq import log
from taskq.config import Settings
from taskq.describe import bounded, repr_of
from taskq.launch import Route
from taskq.message import ATTEMPTS, CRASHES, DEAD_DETAIL, DEAD_REASON, DELIVERIES, Message
from taskq.results.store import Record
from taskq.workers.ending import ended_badly
from taskq.workers.outcome import Outcome, dead_letter, failure, record

#: The longest id and name that a bare dead letter says it is of, in bytes: AMQP's limit for an id.
LONGEST_NAME = 255

#: What says which attempt it was.
COUNTERS = ("retries", ATTEMPTS, CRASHES, DELIVERIES)

logger = log.get_logger("taskq.task")


class DeadLetters:
    """Composes those of one worker; ``route`` and ``worker`` are as everywhere."""

    def __init__(self, settings: Settings, worker: str, route: Route) -> None:
        self.worker = worker
        self.route = route
        self._results = settings.backend_url is not None

    def compose(
        self,
        queue: str,
        message: Message,
        reason: str,
        detail: str,
        *,
        described: dict[str, Any] | None = None,
        end: Record | None = None,
        text: str | None = None,
        followed: bool = False,
    ) -> Outcome:
        """The message is dead, and what was to follow has failed; ``described`` and ``end`` are of this death by default.

        ``followed`` says that what follows was published already: then only the message's chord has yet to hear of its end.
        """
        logger.error("task_dead_lettered", **about(queue, message), reason=reason, detail=detail)
        if described is None:
            described = failure("DeadLettered", [f"{reason}: {detail}"])
            end = self._end(message, described)
        outcome = dead_letter(queue, message, reason, detail, worker=self.worker, end=end, traceback=text)
        try:
            return ended_badly(outcome, message, described, self.route, traceback=text, followed=followed)
        except Exception as error:  # noqa: BLE001  # a message can say anything of what follows; its own end must not depend on it
            logger.error("workflow_not_told", **about(queue, message), error=repr_of(error))
            return outcome

    def bare(
        self,
        queue: str,
        message: Message,
        reason: str,
        detail: str,
        *,
        body: bool = True,
        chord: bool = True,
        recorded: bool = True,
    ) -> Outcome:
        """The least that there can be: why it is dead, which task it was and, unless that is the trouble, the body as it is.

        Without ``chord``, not even the chord hears of it that the task was a member of; without ``recorded``, the backend hears
        of nothing.
        """
        names = {name: message.headers.get(name) for name in ("id", "task")}
        kept: dict[str, Any] = {
            name: text for name, text in names.items() if isinstance(text, str) and text == bounded(text, LONGEST_NAME)
        }
        # The counters too: by them, results tell an end from that of an earlier attempt.
        kept |= {name: count for name in COUNTERS if (count := message.count(name))}
        letter = Message(
            headers=kept,
            body=message.body if body else b"",
            content_type=None,
            content_encoding=None,
            correlation_id=kept.get("id"),
        )
        described = failure("DeadLettered", [f"{reason}: {detail}"])
        end = self._end(letter, described) if recorded else None
        outcome = dead_letter(queue, letter, reason, detail, worker=self.worker, end=end)
        if not recorded:
            logger.error("end_not_recorded", **about(queue, message), error=detail)
        if not (chord and recorded):
            return outcome
        try:
            return ended_badly(outcome, message, described, self.route, followed=True)
        except Exception as error:  # noqa: BLE001  # as above
            logger.error("workflow_not_told", **about(queue, message), error=repr_of(error))
            return outcome

    def _end(self, message: Message, described: dict[str, Any]) -> Record | None:
        try:
            return record(message, "FAILURE", described) if self._results else None
        except Exception as error:  # noqa: BLE001  # a message's headers can hold anything; its dead letter must not depend on them
            logger.error("end_not_recorded", task_id=message.headers.get("id"), error=repr_of(error))
            return None


def about(queue: str, message: Message) -> dict[str, Any]:
    """Which message a line of the log is about."""
    return {"task_id": message.headers.get("id"), "task": message.headers.get("task"), "queue": queue}


def reason_of(outcome: Outcome, reason: str, detail: str) -> tuple[str, str]:
    """Why the outcome has the message dead, and in which words; these, where it does not."""
    if outcome.event != "dead-lettered" or not outcome.publish:
        return reason, detail
    headers = outcome.publish[0].message.headers
    return str(headers.get(DEAD_REASON, reason)), str(headers.get(DEAD_DETAIL, detail))
