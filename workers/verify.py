"""Verification: what an outcome publishes is looked at where it is made, before the child reports it.

What the broker would refuse for good, or the supervisor could not read, is its own task's fault, and becomes that task's end: a
dead letter that says why. It is composed of less and less until it passes; the last one holds nothing but what has arrived.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from taskq import log
from taskq.broker import checker
from taskq.config import Settings
from taskq.describe import bounded, text_of
from taskq.message import DEAD_DETAIL, DEAD_TRACEBACK, HISTORY, Message, Publication
from taskq.sending import check_size
from taskq.workers import pipe
from taskq.workers.dead_letters import DeadLetters, about, reason_of
from taskq.workers.outcome import Outcome, dead_letter

#: The reason of the dead letter of a task that has ended, but for what follows it.
FOLLOW_UP_REFUSED = "follow-up refused"
_ENDED_BADLY = frozenset({"failed", "revoked", "dead-lettered"})
_SHORT_DETAIL = 200

logger = log.get_logger("taskq.task")


class Verifier:
    """Sees to it, for one worker, that outcomes can take effect."""

    def __init__(self, settings: Settings, letters: DeadLetters) -> None:
        self._check = checker(settings)
        self._most_bytes = settings.max_message_bytes
        self._letters = letters

    def __call__(self, queue: str, message: Message, outcome: Outcome) -> Outcome:
        """The outcome of this message, which came from this queue, or what can be had of it. Raises nothing."""
        if (error := self._refusal(message, outcome)) is None:
            return outcome
        detail = f"a follow-up cannot be sent: {text_of(error)}"
        logger.error("outcome_refused", **about(queue, message), event_refused=outcome.event, detail=detail)
        repairs: tuple[Callable[[Outcome], Outcome], ...] = (
            _trimmed,
            lambda bad: bad if bad.event in _ENDED_BADLY else self._letters.compose(queue, message, FOLLOW_UP_REFUSED, detail),
            lambda bad: self._without_what_is_refused(queue, message, bad, detail),
        )
        for repair in repairs:
            outcome = repair(outcome)
            if self._refusal(message, outcome) is None:
                return outcome
        reason, detail = reason_of(outcome, FOLLOW_UP_REFUSED, detail)
        bare = self._letters.bare(queue, message, reason, detail)
        return bare if self._refusal(message, bare) is None else self._letters.bare(queue, message, reason, detail, chord=False)

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
        else:
            check_size(publication, self._most_bytes)
        self._check(publication)

    def _without_what_is_refused(self, queue: str, message: Message, outcome: Outcome, detail: str) -> Outcome:
        """A task that has ended badly is dead; what can be sent of what follows is sent all the same."""
        outcome = _trimmed(outcome)
        if outcome.event == "dead-lettered":
            letter, *others = outcome.publish
        else:
            end = outcome.record
            [letter] = _trimmed(
                dead_letter(queue, message, FOLLOW_UP_REFUSED, detail, worker=self._letters.worker, end=end)
            ).publish
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
