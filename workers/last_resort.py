"""The last resort of the supervisor: a delivery whose outcome can't take effect, or be decided, ends as a dead letter. Pure."""

from __future__ import annotations

from taskq.broker.interface import Decode, Delivery
from taskq.config import Settings
from taskq.describe import bounded, name_of, text_of
from taskq.errors import BrokerError, DatabaseError, MessageError, RecordRefused
from taskq.launch import Route
from taskq.message import Message, undecodable
from taskq.workers.dead_letters import DeadLetters, reason_of
from taskq.workers.outcome import Outcome


class LastResort:
    """For one worker; ``read`` decodes its broker's messages."""

    def __init__(self, settings: Settings, worker: str, read: Decode, route: Route) -> None:
        self.worker = worker
        self.route = route
        self._letters = DeadLetters(settings, worker, route)
        self._read = read

    def dead_letter(self, delivery: Delivery, error: Exception) -> Outcome:
        """The end of a delivery of which nothing could be decided, whatever it holds."""
        return self._letters.compose(delivery.queue, self.message(delivery), "cannot be settled", in_words(error))

    def instead_of(self, outcome: Outcome, delivery: Delivery, error: Exception, *, tries: int, followed: bool) -> Outcome:
        """The end of a delivery whose outcome can't take effect. ``tries`` is how many dead letters of it could not before.

        Each holds less: the second is bare, the third has not even the body. ``followed`` is as in ``DeadLetters.compose``.
        """
        message, detail = self.message(delivery), in_words(error)
        reason = "result refused" if isinstance(error, RecordRefused) else "cannot be settled"
        if not tries:
            return self._letters.compose(delivery.queue, message, reason, detail, followed=followed)
        if outcome.event == "dead-lettered" and tries == 1:
            # Why it was dead before matters more than why less is said of it now.
            reason, detail = reason_of(outcome, reason, detail)
        # What the backend refuses of a dead letter as well is left out; the body is not to blame for that.
        recorded = not isinstance(error, RecordRefused)
        return self._letters.bare(delivery.queue, message, reason, detail, body=tries == 1 or not recorded, recorded=recorded)

    def message(self, delivery: Delivery) -> Message:
        """The message, decoded; or what there is of it."""
        try:
            return self._read(delivery.properties, delivery.body)
        except MessageError:
            return undecodable(delivery.body)


def may_pass(error: Exception) -> bool:
    """Whether another try is worth it: a broker, a backend or a file that is broken for everybody never is the task's fault."""
    return isinstance(error, DatabaseError) or (isinstance(error, BrokerError) and error.passing)


def in_words(error: Exception) -> str:
    """What the error is and says, bounded, whatever it is."""
    return bounded(f"{name_of(type(error))}: {text_of(error)}")
