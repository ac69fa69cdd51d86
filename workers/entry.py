"""An entry of the timetable: a schedule as the leading scheduler knows it, and how often it has failed."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from taskq import log
from taskq.errors import TaskqError
from taskq.schedule import Schedule, State, Tick, entry_key, read_state

#: After how many seconds at the latest a schedule is tried again that fails again and again.
LONGEST_SECONDS = 60.0

logger = log.get_logger("taskq.scheduler")


class Entry:
    """A schedule as the leader knows it: what stands in the ledger, and what is due of it."""

    def __init__(self, app: str, schedule: Schedule) -> None:
        self.schedule = schedule
        self.key = entry_key(app, schedule.name)
        self.written: bytes | None = None
        self.state: State | None = None
        self.due: deque[datetime] = deque()
        #: When to look at it again, in seconds since the epoch.
        self.next_at = 0.0
        self._app = app
        self._failures = 0
        self._complaint = ""

    def tick(self, nominal: datetime) -> Tick:
        """One of its ticks."""
        return Tick(self._app, self.schedule.name, nominal)

    def found(self, written: bytes | None) -> None:
        """What stands in the ledger: whatever was known of the schedule before is out of date, but not that it fails."""
        self.wrote(written)
        self.due.clear()
        if not self._failures:
            self.next_at = 0.0

    def wrote(self, written: bytes | None) -> None:
        """What has just been written into the ledger."""
        self.written = written
        self.state = None if written is None else read_state(written)

    def postpone(self, now: float, seconds: float) -> float:
        """Its tick could not be sent: others have their turn first. Returns for how long; from failure to failure, longer."""
        seconds = min(seconds * 2.0 ** min(self._failures, 10), LONGEST_SECONDS)
        self._failures += 1
        self.next_at = now + seconds
        return seconds

    def complain(self, error: Exception, seconds: float) -> None:
        """Say that it is this schedule that is at fault: once, until it is so for another reason."""
        complaint = f"{type(error).__name__}: {error}"
        if complaint != self._complaint:
            trace = None if isinstance(error, TaskqError) else error
            logger.error("tick_refused", schedule=self.schedule.name, error=complaint, retry_in=seconds, exc_info=trace)
        self._complaint = complaint

    def succeeded(self) -> None:
        """There is nothing wrong with it."""
        self._failures, self._complaint = 0, ""
