"""The link: the supervisor's connection to the broker, made again whenever it breaks.

Connecting blocks, so a thread does it, with back-off; the loop goes on meanwhile. What happens is said once, not at each try.
Where a connection served nobody before it was lost, or the broker broke it over something that it was sent, the next one is
made later each time: what breaks every connection at once must not become a storm at the broker.
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
    """Makes connected consumers. ``arrived`` holds each, or the error that no retry will mend; ``wake`` is called for each.

    At the start, what the broker refuses (a queue with other arguments) is no worker's to mend; later, it is waited for.
    """

    def __init__(self, open_consumer: Callable[[], Consumer], url: str, wake: Callable[[], None]) -> None:
        self._open = open_consumer
        self._url = masked(url)
        self._wake = wake
        self._closed = threading.Event()
        self._connected_before = False
        self._delay = 0.0
        self.arrived: SimpleQueue[Consumer | TaskqError] = SimpleQueue()
        self._wanted: SimpleQueue[bool | None] = SimpleQueue()
        # One thread for all connections: at a limit of processes, as in many a container, a new one could not be started.
        self._thread = threading.Thread(target=self._serve, name="taskq-link", daemon=True)
        self._thread.start()

    def connect(self, *, at_once: bool = True) -> None:
        """Begin to connect; the consumer comes through ``arrived``. Without ``at_once``, after a pause, longer each time."""
        self._wanted.put(at_once)

    def close(self) -> None:
        """Stop trying."""
        self._closed.set()
        self._wanted.put(None)

    def _serve(self) -> None:
        while (at_once := self._wanted.get()) is not None and not self._closed.is_set():
            if at_once:
                self._delay = 0.0
            else:
                self._back_off()
            self._connect()

    def _back_off(self) -> None:
        self._delay = min(max(2 * self._delay, FIRST_DELAY), LONGEST_DELAY)
        self._closed.wait(self._delay * random.uniform(0.8, 1.2))

    def _connect(self) -> None:
        started, tries = time.monotonic(), 0
        while not self._closed.is_set():
            tries += 1
            try:
                consumer = self._connected()
            except (BrokerUnreachable, ConnectionLost, DatabaseError) as error:
                if isinstance(error, DatabaseError) and not error.passing:
                    self._arrive(error)
                    return
                if tries == 1:
                    logger.warning("broker_unreachable", broker=self._url, error=str(error), retry="with back-off")
            except TaskqError as error:
                if not self._connected_before:
                    self._arrive(error)
                    return
                # It was right when the worker started, and what runs must not be lost for what somebody has changed since.
                if tries == 1:
                    logger.error("broker_refuses", broker=self._url, error=str(error), retry="with back-off")
            except Exception as error:  # a worker that tries no more, and says nothing of it, would look alive for ever
                logger.error("connecting_failed", broker=self._url, error=repr(error), exc_info=error)
            else:
                if self._connected_before or tries > 1:
                    seconds = round(time.monotonic() - started, 3)
                    logger.info("broker_connected", broker=self._url, tries=tries, seconds=seconds)
                self._connected_before = True
                self._arrive(consumer)
                return
            self._back_off()

    def _connected(self) -> Consumer:
        consumer = self._open()
        consumer.connect(CONNECT_TIMEOUT)
        return consumer

    def _arrive(self, what: Consumer | TaskqError) -> None:
        self.arrived.put(what)
        self._wake()
