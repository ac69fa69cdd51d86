"""Whether a publication can be sent: asked where a call is made, and in the child for what the end of a task publishes."""

from __future__ import annotations

import msgspec

from taskq import broker
from taskq.broker.interface import Check
from taskq.config import Settings
from taskq.decoding import UNREADABLE
from taskq.errors import ConfigurationError, MessageTooLarge
from taskq.message import PROTOCOL_HEADERS, SENT, Publication

#: What every call has.
_NOT_COUNTED = PROTOCOL_HEADERS | {SENT}


def checker(settings: Settings) -> Check:
    """What finds out whether a publication is no larger than ``max_message_bytes``, and one that this broker could carry.

    It asks nobody and costs microseconds. What it raises names the task.
    """
    limit, carries = settings.max_message_bytes, broker.checker(settings)

    def check(publication: Publication) -> None:
        check_size(publication, limit)
        try:
            carries(publication)
        except (ConfigurationError, MessageTooLarge) as error:
            raise type(error)(f"task {publication.message.headers.get('task')!r}: {error}") from None

    return check


def check_size(publication: Publication, limit: int) -> None:
    """Raises ``MessageTooLarge`` where the body and the caller's own headers are more than ``limit`` bytes together.

    What taskq adds while a message lives is not counted: a call that was accepted can be retried. Replies are not messages.
    """
    if publication.reply:
        return
    message = publication.message
    size = len(message.body)
    if others := message.headers.keys() - _NOT_COUNTED:
        try:
            size += sum(len(msgspec.json.encode(message.headers[name])) for name in others if not name.startswith("tq-"))
        except UNREADABLE as error:
            raise ConfigurationError(f"task {message.headers.get('task')!r}: its headers cannot be written: {error}") from None
    if size > limit:
        raise MessageTooLarge(
            f"task {message.headers.get('task')!r}: its message is {size} bytes, over max_message_bytes={limit}; "
            "store the data elsewhere and send where it is"
        )
