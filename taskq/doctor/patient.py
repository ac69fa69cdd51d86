"""The patient: an application's deployment, as it is seen from this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from taskq import connections
from taskq.app import TaskQ
from taskq.broker import open_caller
from taskq.broker.pidbox import EVERY_WORKER
from taskq.cli.loading import load_app
from taskq.config import Settings
from taskq.errors import TaskqError

#: How long workers have to answer, in seconds.
PATIENCE = 1.0


class Patient:
    """The application at ``spec`` (``module:app``), with these settings from the command line on top.

    Where it cannot be imported, or none is named, ``app`` has no tasks, and ``failure`` says what went wrong. Raises
    ``ConfigurationError`` for settings that make no sense.
    """

    def __init__(self, spec: str | None, command_line: Mapping[str, Any]) -> None:
        self.spec = spec
        self.failure: str | None = None
        threads, began, connected = threading.active_count(), time.monotonic(), set(connections.connected())
        app = None
        if spec is not None:
            try:
                app = load_app(spec)
            except TaskqError as error:
                self.failure = str(error)
        #: How long the import took, in seconds, and how many threads it left behind.
        self.seconds, self.threads = time.monotonic() - began, threading.active_count() - threads
        self.app = app or TaskQ("taskq")
        self.app.configure(command_line)
        #: The other ends of connections that the import left open, but for those that a worker closes itself.
        self.connections: tuple[str, ...] = ()
        if connections.connected().keys() - connected:
            self.app.close()
            connections.close_known()
            self.connections = tuple(sorted({peer for key, peer in connections.connected().items() if key not in connected}))

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self.app.settings

    @property
    def embedded(self) -> bool:
        """Whether the broker is an SQLite file."""
        return self.settings.broker.startswith("sqlite:")

    @cached_property
    def workers(self) -> Mapping[str, Mapping[str, Any]]:
        """What each worker says of itself that answers. Raises ``BrokerError``."""
        with open_caller(self.settings) as caller:
            answers = caller.ask("status", {}, pattern=EVERY_WORKER, timeout=PATIENCE)
        return {name: answer for name, answer in sorted(answers.items()) if "queues" in answer}

    def close(self) -> None:
        """Close the connections."""
        self.app.close()
