"""Control: what operators say to all workers, those that do not run yet included.

A broker keeps these entries durably and hands each to every worker: what stands when it connects, and what comes later.
Whoever folds them in their order knows what is revoked and what is paused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from taskq.decoding import decoded
from taskq.errors import MessageError

#: For how long a revocation is kept, in seconds: longer than its message may still be under way.
REVOKED_SECONDS = 30 * 86_400.0


class Revoke(msgspec.Struct, frozen=True, tag="revoke"):
    """The task ``id`` must not run any more; with ``terminate`` it is ended where it runs. ``at`` is in epoch seconds."""

    id: str
    terminate: bool = False
    at: float = 0.0


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Workers fetch nothing from the queue."""

    queue: str
    at: float = 0.0


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Workers fetch from the queue again."""

    queue: str
    at: float = 0.0


Control = Revoke | Pause | Resume

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)


def decode(data: bytes) -> Control | None:
    """The entry in these bytes; None for one that this version of taskq does not know, or that is none."""
    try:
        return decoded(_decoder.decode, data, "a control entry")
    except MessageError:
        return None


def key(control: Control) -> str:
    """What the entry is about: a later entry with the same key replaces an earlier one."""
    return f"revoke {control.id}" if isinstance(control, Revoke) else f"pause {control.queue}"


class Standing:
    """What stands after all entries so far: the revoked tasks by id, and the paused queues."""

    def __init__(self) -> None:
        self.revoked: dict[str, Revoke] = {}
        self.paused: set[str] = set()

    def fold(self, controls: Iterable[Control]) -> None:
        """These entries came in, oldest first. What brokers have long forgotten is forgotten here, too."""
        forgotten = time.time() - REVOKED_SECONDS
        while self.revoked and 0.0 < next(iter(self.revoked.values())).at < forgotten:
            del self.revoked[next(iter(self.revoked))]
        for control in controls:
            match control:
                case Revoke(id=task_id):
                    self.revoked[task_id] = control
                case Pause(queue=queue):
                    self.paused.add(queue)
                case Resume(queue=queue):
                    self.paused.discard(queue)
