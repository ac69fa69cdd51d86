"""The link: the supervisor's connection to the broker, made again whenever it breaks.

Connecting blocks, so a thread does it, with back-off; the loop goes on meanwhile. What happens is said once, not at each try.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from taskq import log
from taskq.broker.interface import Consumer
from taskq.config import masked
from taskq.errors import BrokerUnreachable, ConnectionLost, DatabaseError, TaskqError

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
CONNECT_TIMEOUT = 5.0

logger = log.get_logger("taskq.link")


class Link:
    """Makes connected consumers. ``arrived`` holds each, or the error that no retry will mend; ``wake`` is called for each."""

    def __init__(self, open_consumer: Callable[[], Consumer], url: str, wake: Callable[[], None]) -> None:
        self._open = open_consumer
        self._url = masked(url)
        self._wake = wake
        self._closed = threading.Event()
        self._connected_before = False
        self.arrived: SimpleQueue[Consumer | TaskqError] = SimpleQueue()

    def connect(self) -> None:
        """Begin to connect; the consumer comes through ``arrived``."""
        threading.Thread(target=self._connect, name="taskq-link", daemon=True).start()

    def close(self) -> None:
        """Stop trying."""
        self._closed.set()

    def _connect(self) -> None:
        started, delay, tries = time.monotonic(), FIRST_DELAY, 0
        while not self._closed.is_set():
            tries += 1
            consumer = self._open()
            try:
                consumer.connect(CONNECT_TIMEOUT)
            except (BrokerUnreachable, ConnectionLost, DatabaseError) as error:
                if isinstance(error, DatabaseError) and not error.passing:
                    self._arrive(error)
                    return
                if tries == 1:
                    logger.warning("broker_unreachable", broker=self._url, error=str(error), retry="with back-off")
                self._closed.wait(delay * random.uniform(0.8, 1.2))
                delay = min(2 * delay, LONGEST_DELAY)
                continue
            except TaskqError as error:
                self._arrive(error)
                return
            if self._connected_before or tries > 1:
                logger.info("broker_connected", broker=self._url, tries=tries, seconds=round(time.monotonic() - started, 3))
            self._connected_before = True
            self._arrive(consumer)
            return

    def _arrive(self, what: Consumer | TaskqError) -> None:
        self.arrived.put(what)
        self._wake()
