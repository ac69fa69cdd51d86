"""The last resort: a task whose outcome can't take effect, or can't even be decided, ends as a dead letter that says why. Pure.

A dead letter can always be written, because each further one leaves out more of what may be the trouble: first what was to
follow the task, then its headers but for the two that say which task it was, then its body.
"""

from __future__ import annotations

from taskq import log
from taskq.broker.interface import Decode, Delivery
from taskq.config import Settings
from taskq.errors import BrokerError, DatabaseError, MessageError, RecordRefused
from taskq.launch import Route
from taskq.message import Message, undecodable
from taskq.workers.ending import ended_badly
from taskq.workers.outcome import Outcome, dead_letter, failure, record

#: How much of a header of somebody else's a bare dead letter holds, in bytes.
LONGEST_NAME = 255

logger = log.get_logger("taskq.settle")


class LastResort:
    """Makes the dead letters of one worker; ``route`` and ``worker`` are as everywhere."""

    def __init__(self, settings: Settings, worker: str, read: Decode, route: Route) -> None:
        self.worker = worker
        self.route = route
        self._read = read
        self._results = settings.backend_url is not None

    def dead_letter(self, delivery: Delivery, error: Exception, *, tries: int = 0, followed: bool = False) -> Outcome:
        """The end of the delivery, whatever it holds. ``tries`` is how many dead letters of it could not take effect before.

        ``followed`` says that what follows the task was published already: then only its chord has yet to hear of its end.
        """
        reason, detail = _reason(error), in_words(error)
        message = self.message(delivery)
        about = {"task_id": _name(message.headers.get("id")), "task": _name(message.headers.get("task"))}
        logger.error("task_dead_lettered", **about, queue=delivery.queue, reason=reason, detail=detail, tries=tries)
        described = failure("DeadLettered", [f"{reason}: {detail}"])
        if not tries:
            try:
                outcome = self._letter(delivery.queue, message, reason, detail)
                return ended_badly(outcome, message, described, self.route, followed=followed)
            except Exception as another:  # noqa: BLE001  # this is what the bare one is for
                logger.warning("dead_letter_cut", **about, error=in_words(another))
        headers = {name: text for name in ("id", "task") if (text := _name(message.headers.get(name)))}
        bare = Message(headers=headers, body=b"" if tries > 1 else delivery.body)
        return self._letter(delivery.queue, bare, reason, detail)

    def message(self, delivery: Delivery) -> Message:
        """The message, decoded; or what there is of it."""
        try:
            return self._read(delivery.properties, delivery.body)
        except MessageError:
            return undecodable(delivery.body)

    def _letter(self, queue: str, message: Message, reason: str, detail: str) -> Outcome:
        described = failure("DeadLettered", [f"{reason}: {detail}"])
        end = record(message, "FAILURE", described) if self._results else None
        return dead_letter(queue, message, reason, detail, worker=self.worker, end=end)


def _reason(error: Exception) -> str:
    return "result refused" if isinstance(error, RecordRefused) else "cannot be settled"


def concerns_all(error: Exception) -> bool:
    """Whether it is not of what was to be settled, but of what it is settled with: a broken file never is the task's."""
    return isinstance(error, DatabaseError) or (isinstance(error, BrokerError) and error.passing)


def in_words(error: Exception) -> str:
    """What the error says, bounded, whatever it is."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # an error of somebody else's that cannot be put into words
        text = type(error).__name__
    return _plain(text, 2_000)


def _name(value: object) -> str | None:
    """A header's text as any broker and backend can hold it; None where it holds none."""
    return _plain(value, LONGEST_NAME) if isinstance(value, str) else None


def _plain(text: str, most: int) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace")[:most].decode("utf-8", "ignore")
