"""Upkeep: forgets results over their time to live, in a thread with a connection of its own.

The loop must not wait for it: a million may be due at once, after a day without workers or because ``result_ttl`` was lowered.
"""

from __future__ import annotations

import random
import threading
from contextlib import closing

from taskq import log
from taskq.config import Settings
from taskq.results import open_store

#: How often it is done, in seconds; at random, so that many workers do not all come at once.
EVERY = 60.0
#: How long others may write between two steps, in seconds.
PAUSE = 0.05
#: How long the end of it is waited for, in seconds.
GOODBYE = 2.0

logger = log.get_logger("taskq.upkeep")


class Upkeep:
    """The thread, for the backend of these settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closing = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="taskq-upkeep", daemon=True)

    def start(self) -> None:
        """Begin, where there is a backend that keeps results."""
        if self._settings.keeps_results:
            self._thread.start()

    def stop(self) -> None:
        """Do no more of it; waits for the step that is under way, but not for a backend that does not answer."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(GOODBYE)

    def _run(self) -> None:
        while not self._closing.wait(EVERY * random.uniform(0.8, 1.2)):
            try:
                self._expire()
            except Exception as error:  # results are kept for longer then, which harms nobody; it is tried again
                if not self._failing:
                    logger.warning("results_not_expired", error=repr(error), exc_info=error)
                self._failing = True
            else:
                self._failing = False

    def _expire(self) -> None:
        with closing(open_store(str(self._settings.backend_url), self._settings.result_ttl)) as store:
            while store.expire() and not self._closing.wait(PAUSE):
                pass
