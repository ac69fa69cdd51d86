"""Returns: messages that came back although nobody gave them back, and what becomes of each.

Some this worker knows from before its connection broke (``limbo``). Of all others it is asked what is recorded of them, by the
backend and by the run journals of the dead, and ``crashes`` decides. Many are judged with one question to the backend: after an
outage a thousand come back at once, and the loop must not be held up by them.

A task that runs at most once, and was lost, must end once although several workers may be judging copies of its message: one
takes it on, by putting its own process into the record in the place of the dead one (``ResultStore.replace``). The others see
the task run then, and judge their copies again later.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from taskq import log
from taskq.broker.interface import Delivery
from taskq.errors import BrokerError, MessageError
from taskq.message import SEEN_RUNNING, Message
from taskq.results.store import Record
from taskq.workers.crashes import Coroner, has_begun_once
from taskq.workers.last_resort import may_pass
from taskq.workers.limbo import Ended, Limbo, Return
from taskq.workers.outcome import Outcome
from taskq.workers.settle import Settler

#: For how long after a lost connection nothing is proven by a message that comes back, in seconds.
OUTAGE_SECONDS = 30.0
#: For how long another machine is believed that it has seen a task run, in seconds.
BELIEVED_SECONDS = 60.0
#: How many are judged at once.
MOST_AT_ONCE = 100
_MARK = SEEN_RUNNING.encode()

logger = log.get_logger("taskq.custody")


def came_back(delivery: Delivery) -> bool:
    """Whether the message is to be judged: nobody gave it back, or its task was seen to run; without decoding it."""
    return delivery.redelivered or _MARK in delivery.properties


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
        self._begun: set[str] = set()
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
        yield from self._found_out(strangers)

    def _found_out(self, strangers: Sequence[Delivery]) -> list[Judgement]:
        """What becomes of these. What nobody has foreseen is found by halves: it is the end of the one that it comes of."""
        if not strangers:
            return []
        try:
            return self._judged(strangers)
        except Exception as error:  # noqa: BLE001  # messages and records are anybody's
            if may_pass(error):
                # One of them may run at most once: without an answer it must not run. They are asked about again.
                self.waiting.extendleft(reversed(strangers))
                logger.warning("backend_failed", error=str(error), waiting=len(self.waiting))
                return []
            if len(strangers) == 1:
                return [Judgement(strangers[0], self._settler.last_resort.dead_letter(strangers[0], error), stranger=True)]
            half = len(strangers) // 2
            return [*self._found_out(strangers[:half]), *self._found_out(strangers[half:])]

    def _judged(self, strangers: Sequence[Delivery]) -> list[Judgement]:
        """What becomes of these. Nothing is raised once a lost run is taken on: judged again, it would seem to run here."""
        messages = [self._settler.last_resort.message(delivery) for delivery in strangers]
        ids = [message.id for message in messages if message.id is not None]
        self._begun |= self._begun_of(ids)
        records = self._records(messages)
        lost = self._take_on_lost(messages, records)
        # Where our own connection has just broken, so may that of whoever had it, and no worker need have died.
        blinked = time.monotonic() <= self._connection_lost_at + OUTAGE_SECONDS
        judgements = []
        for number, (delivery, message, record) in enumerate(zip(strangers, messages, records, strict=True)):
            facts = {
                "orphaned": delivery.orphaned and not blinked,
                "blinked": blinked,
                "begun": message.id in self._begun,
                "seen_running": None if number in lost else _last_seen(message, record),
            }
            judgements.append(Judgement(delivery, self._decide(delivery, message, record, **facts), stranger=True))
        self._begun.difference_update(ids)
        return judgements

    def _decide(self, delivery: Delivery, message: Message, record: Record | None, **facts: Any) -> Outcome:
        try:
            return self._coroner.came_back(delivery.queue, message, record=record, **facts)
        except Exception as error:  # noqa: BLE001  # whatever it holds, it must not keep the others from being judged
            return self._settler.last_resort.dead_letter(delivery, error)

    def _take_on_lost(self, messages: Sequence[Message], records: Sequence[Record | None]) -> set[int]:
        """Which of these are of a lost run that this worker is to record as such; raises ``BrokerError`` as ``_records``."""
        lost: dict[str, int] = {}
        changes: list[tuple[Record, bytes]] = []
        for number, (message, record) in enumerate(zip(messages, records, strict=True)):
            if record is not None and record.id not in lost and (meta := self._lost(message, record)) is not None:
                lost[record.id] = number
                changes.append((record, meta))
        store = self._settler.store
        taken_on = store.replace(changes) if store is not None and changes else []
        return {lost[record.id] for (record, _), done in zip(changes, taken_on, strict=True) if done}

    def _lost(self, message: Message, record: Record) -> bytes | None:
        """What the record says as soon as this worker has taken the lost run on; None where none was lost."""
        try:
            if not has_begun_once(message, record):
                return None
            known = record.described()
        except MessageError:
            return None
        about = known["result"]
        if record.id not in self._begun and (_lives(about) if _began_here(about) else _believed(message) is not None):
            return None
        here = {"pid": os.getpid(), "hostname": socket.gethostname(), "started": time.time()}
        return msgspec.json.encode({**known, "result": {**about, **here}})

    def _records(self, messages: Sequence[Message]) -> list[Record | None]:
        """What is recorded of these tasks; raises ``BrokerError`` while that can't be found out."""
        store = self._settler.store
        ids = [message.id for message in messages if message.id is not None]
        if store is None or not ids:
            return [None] * len(messages)
        try:
            found = dict(zip(ids, store.fetch(ids), strict=True))
        except BrokerError as error:
            if error.passing or len(messages) > 1:
                raise
            # An id that the backend can't hold is one that nothing is recorded of.
            return [None]
        return [found.get(message.id) if message.id is not None else None for message in messages]


def _last_seen(message: Message, record: Record | None) -> float:
    """When a task that is not lost was last seen to run: now, unless this is another machine than the one it runs on.

    What that one has said is handed on as it is: two others would else go on to believe each other.
    """
    try:
        about = record.described().get("result") if record is not None else None
    except MessageError:
        about = None
    believed = None if _began_here(about) else _believed(message)
    return time.time() if believed is None else believed


def _began_here(about: Any) -> bool:
    """Whether the task began on this machine, by what its record says of that."""
    return isinstance(about, dict) and about.get("hostname") == socket.gethostname()


def _believed(message: Message) -> float | None:
    """When another machine has seen the task run, if that is not long ago."""
    seen = message.moment(SEEN_RUNNING)
    return seen if seen is not None and abs(time.time() - seen) < BELIEVED_SECONDS else None


def _lives(about: dict[str, Any]) -> bool:
    """Whether the process lives in which the task began here; another one may have its number."""
    match about:
        case {"pid": int(process_id), "started": float(began)} if began < time.time() + BELIEVED_SECONDS:
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
