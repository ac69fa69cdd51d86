"""Returns: messages that came back although nobody gave them back, and what becomes of each.

Some this worker knows from before its connection broke (``limbo``). Of all others it is asked what is recorded of them, by the
backend and by the run journals of the dead, and ``crashes`` decides. Many are judged with one question to the backend: after an
outage a thousand come back at once, and the loop must not be held up by them.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from taskq import log
from taskq.broker.interface import Delivery
from taskq.errors import BrokerError, MessageError
from taskq.message import Message
from taskq.results.store import Record
from taskq.workers.crashes import Coroner
from taskq.workers.limbo import Ended, Limbo, Return
from taskq.workers.outcome import Outcome
from taskq.workers.settle import Settler

#: For how long after a lost connection nothing is proven by a message that comes back, in seconds.
OUTAGE_SECONDS = 30.0
#: How many are judged at once.
MOST_AT_ONCE = 100

logger = log.get_logger("taskq.custody")


class Judgement(NamedTuple):
    """What becomes of a message that came back: its end, or, without one, it waits for a child as any other does.

    ``stranger`` says that this worker knew nothing of it; ``breaks`` is what its settlement said of them before.
    """

    delivery: Delivery
    outcome: Outcome | None
    stranger: bool = False
    breaks: int = 0


class Returns:
    """Those of one worker. ``waiting`` are yet to be judged, oldest first; ``begun_of`` asks the run journals."""

    def __init__(
        self,
        settler: Settler,
        coroner: Coroner,
        identify: Callable[[bytes], str | None],
        begun_of: Callable[[Sequence[str]], set[str]],
    ) -> None:
        self.waiting: deque[Delivery] = deque()
        self.limbo = Limbo(identify)
        self._settler = settler
        self._coroner = coroner
        self._begun_of = begun_of
        self._connection_lost_at = -OUTAGE_SECONDS

    def lose_connection(self, now: float) -> None:
        """The broker hands all of them out again, once there is a connection."""
        self._connection_lost_at = now
        self.waiting.clear()

    def judge(self) -> Iterator[Judgement]:
        """What becomes of the oldest ones; those that can't be judged now wait on."""
        strangers: list[Delivery] = []
        for _ in range(min(len(self.waiting), MOST_AT_ONCE)):
            delivery = self.waiting.popleft()
            match self.limbo.claim(delivery):
                case Ended(outcome=outcome, breaks=breaks):
                    yield Judgement(delivery, outcome, breaks=breaks)
                case Return.UNBEGUN:
                    delivery.redelivered = False
                    yield Judgement(delivery, None)
                case Return.STRANGER:
                    strangers.append(delivery)
        if not strangers:
            return
        messages = [self._settler.last_resort.message(delivery) for delivery in strangers]
        ids = [task_id for message in messages if isinstance(task_id := message.headers.get("id"), str)]
        try:
            records = self._records(messages)
        except BrokerError as error:
            # One of them may run at most once: without an answer it must not run. They are asked about again.
            self.waiting.extendleft(reversed(strangers))
            logger.warning("backend_failed", error=str(error), waiting=len(self.waiting))
            return
        # Where our own connection has just broken, so may that of whoever had it, and no worker need have died.
        blinked = time.monotonic() <= self._connection_lost_at + OUTAGE_SECONDS
        begun = self._begun_of(ids)
        for delivery, message, record in zip(strangers, messages, records, strict=True):
            task_id = message.headers.get("id")
            facts = {"orphaned": delivery.orphaned and not blinked, "begun": isinstance(task_id, str) and task_id in begun}
            yield Judgement(delivery, self._decide(delivery, message, record, **facts), stranger=True)

    def _decide(self, delivery: Delivery, message: Message, record: Record | None, *, orphaned: bool, begun: bool) -> Outcome:
        try:
            running = record is not None and _lives_on(record)
            about = {"orphaned": orphaned, "begun": begun, "running": running}
            return self._coroner.came_back(delivery.queue, message, record=record, **about)
        except Exception as error:  # noqa: BLE001  # whatever it holds, it must not keep the others from being judged
            return self._settler.last_resort.dead_letter(delivery, error)

    def _records(self, messages: Sequence[Message]) -> list[Record | None]:
        """What is recorded of these tasks; raises ``BrokerError`` while that can't be found out."""
        store = self._settler.store
        ids = [task_id for message in messages if isinstance(task_id := message.headers.get("id"), str)]
        if store is None or not ids:
            return [None] * len(messages)
        try:
            found = dict(zip(ids, store.fetch(ids), strict=True))
        except BrokerError as error:
            if error.passing or len(messages) == 1:
                if error.passing:
                    raise
                # An id that the backend can't hold is one that nothing is recorded of.
                return [None]
            return [record for message in messages for record in self._records([message])]
        return [found.get(message.headers.get("id", "")) for message in messages]


def _lives_on(record: Record) -> bool:
    """Whether the process lives in which the task began, as far as this machine can tell; another one may have its number."""
    try:
        about = record.described().get("result") if record.status == "STARTED" else None
    except MessageError:
        return False
    match about:
        case {"hostname": hostname, "pid": int(process_id), "started": float(began)} if hostname == socket.gethostname():
            since = _alive_since(process_id)
            return since is not None and since <= began
    return False


def _alive_since(process_id: int) -> float | None:
    """When the process was started, in seconds since the epoch; None where there is none, or only what is left of one."""
    try:
        with open(f"/proc/{process_id}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    if state in (b"Z", b"X"):
        return None
    # The kernel counts from the start of the machine (proc(5), field 22), in ticks.
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[18]) / os.sysconf("SC_CLK_TCK")
