"""What the supervisor's loop listens to, and what it calls then. An error of one call reaches no other."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Callable
from typing import Any

from taskq import log
from taskq.workers.last_resort import in_words

#: How long the loop waits after an error that nobody has foreseen, in seconds: the first time, and at most.
FIRST_WAIT, LONGEST_WAIT = 0.01, 1.0
#: How long after something has failed it is tried again, in seconds.
TRY_AGAIN = 0.5

logger = log.get_logger("taskq.supervisor")


class Callbacks:
    """Calls what belongs to a descriptor when that is readable."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._failures = 0

    def watch(self, what: Any, act: Callable[[], None]) -> None:
        """Have ``act`` called when ``what`` is readable."""
        self._selector.register(what, selectors.EVENT_READ, act)

    def unwatch(self, what: Any) -> None:
        """Not any more, if it was."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(what)

    def watch_writing(self, what: Any, *, wanted: bool) -> None:
        """Have it called when ``what`` can be written, too."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(what, events, self._selector.get_key(what).data)

    def wait(self, timeout: float) -> None:
        """Wait so many seconds at most for something to call, and call it."""
        for key, _ in self._selector.select(timeout):
            current = self._selector.get_map().get(key.fd)
            # What was called before it may have closed what this one is about.
            if current is not None and current.data is key.data:
                try:
                    key.data()
                except Exception as error:  # noqa: BLE001  # the others are to be called all the same
                    self.failed(error)

    def failed(self, error: Exception) -> float:
        """An error that nobody has foreseen: it is logged; returns for how many seconds the loop should let things be."""
        self._failures += 1
        logger.error("loop_failed", error=in_words(error), failures=self._failures, exc_info=error)
        return min(FIRST_WAIT * 2.0 ** min(self._failures, 10), LONGEST_WAIT)

    def worked(self) -> None:
        """A turn of the loop without one."""
        self._failures = 0


class Trouble:
    """Something that fails for everybody, is told of once, and is tried again at ``again_at`` (monotonic seconds)."""

    def __init__(self) -> None:
        self.failing = False
        self.again_at = 0.0

    def met(self, error: Exception, **about: Any) -> None:
        """It has failed."""
        if not self.failing:
            logger.error("broker_failed", error=in_words(error), retry_every=TRY_AGAIN, **about)
        self.failing, self.again_at = True, time.monotonic() + TRY_AGAIN

    def over(self) -> None:
        """It works."""
        self.failing, self.again_at = False, 0.0
