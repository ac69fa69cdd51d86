"""The reply queue of a process: where the results of its calls come back to with the backend ``rpc://``.

The queue belongs to the process and not to a connection: it is durable, and the broker deletes it when nobody has read it for
some minutes. So a reply survives a broken connection and a restarted broker. A reply is acked once it was taken.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
import uuid

from taskq import log
from taskq.broker.amqp.connection import BROKEN, close, connect
from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.properties import correlation_id
from taskq.broker.amqp.topology import refusal
from taskq.broker.amqp.transport import Connection
from taskq.broker.interface import TakeReply
from taskq.config import Settings, masked
from taskq.errors import BrokerError, BrokerUnreachable

#: How long the queue stays when nobody reads it, in seconds.
EXPIRES = 300
#: How many replies the broker may send ahead of our acknowledgements.
AHEAD = 1000
#: Seconds between two tries to connect.
PAUSE = 0.5
#: How long the goodbye may take, in seconds.
GOODBYE = 2.0

logger = log.get_logger("taskq.broker")


class AmqpReplies:
    """Reads the queue ``name`` in a thread, and connects anew by itself. Raises ``BrokerUnreachable`` if it can't at first."""

    def __init__(self, settings: Settings, take: TakeReply) -> None:
        self.name = f"taskq.reply.{uuid.uuid4().hex}"
        self._settings = settings
        self._take = take
        self._ear, self._bell = socket.socketpair()
        self._closing = threading.Event()
        self._begun = threading.Event()
        self._refusal: BrokerError | None = None
        self._thread = threading.Thread(target=self._run, name="taskq-replies", daemon=True)
        self._thread.start()
        if not self._begun.wait(settings.publish_timeout):
            self._refusal = BrokerUnreachable(
                f"cannot reach {masked(settings.broker)}: no answer within {settings.publish_timeout:.3g} s"
            )
        if self._refusal is not None:
            self._closing.set()
            raise self._refusal

    def close(self) -> None:
        """Read no more, and delete the queue."""
        self._closing.set()
        with contextlib.suppress(OSError):  # the thread has ended before
            self._bell.send(b"!")
        self._thread.join(GOODBYE)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._serve(self._connect())
            except BrokerError as error:
                if not self._begun.is_set():
                    self._refusal = error
                    self._begun.set()
                    break
                self._closing.wait(PAUSE)
            except Exception as error:  # without this thread, whoever waits for a result would wait for ever
                logger.error("replies_failed", broker=masked(self._settings.broker), error=repr(error), exc_info=error)
                self._closing.wait(PAUSE)
        self._ear.close()
        self._bell.close()

    def _serve(self, connection: Connection) -> None:
        self._begun.set()
        try:
            self._read(connection)
            connection.deadline = time.monotonic() + GOODBYE
            connection.channel().queue_delete(self.name)
        except BROKEN as error:
            logger.warning("replies_interrupted", broker=masked(self._settings.broker), error=str(error))
        close(connection)

    def _connect(self) -> Connection:
        """A connection that the broker sends the replies on."""
        connection = connect(
            self._settings,
            timeout=self._settings.publish_timeout,
            heartbeat=self._settings.heartbeat,
            silence=2 * self._settings.heartbeat,
            name="replies",
        )
        try:
            channel = connection.channel()
            # classic, whatever is the default of the virtual host: nothing here needs a majority of the nodes
            arguments = {"x-queue-type": "classic", "x-expires": EXPIRES * 1000}
            channel.queue_declare(self.name, durable=True, auto_delete=False, arguments=arguments)
            channel.request_prefetch(AHEAD)
            channel.basic_consume(self.name, callback=self._arrive)
        except BROKEN as error:
            connection.collect()
            raise refusal(error, self._settings) from error
        return connection

    def _read(self, connection: Connection) -> None:
        """Until we are closed, or the connection breaks."""
        beat = self._settings.heartbeat / 2
        beat_at = time.monotonic() + beat
        with selectors.DefaultSelector() as selector:
            selector.register(connection.sock, selectors.EVENT_READ)
            selector.register(self._ear, selectors.EVENT_READ)
            while not self._closing.is_set():
                if beat and time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + beat
                    self._beat(connection)
                events = selectors.EVENT_READ if connection.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
                selector.modify(connection.sock, events)
                selector.select(max(0.0, beat_at - time.monotonic()) if beat else None)
                while connection.pump():
                    connection.dispatch()

    def _beat(self, connection: Connection) -> None:
        # a process that was suspended finds the broker's heartbeats waiting in the socket
        silence = 2 * self._settings.heartbeat
        if time.monotonic() - connection.last_received > silence and not connection.pump():
            raise TimeoutError(f"no sign of life for {silence:g} s")
        connection.send_heartbeat()

    def _arrive(self, message: Delivered) -> None:
        # Anybody may write to the queue; what says not what it replies to is nobody's.
        if task_id := correlation_id(message.raw_properties):
            self._take(task_id, message.raw_body)
        message.ack()
