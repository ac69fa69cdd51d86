"""Orders: what operators say, applied to deliveries. Which tasks are revoked, and which queues are paused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from taskq.broker.interface import Delivery
from taskq.control import Control, Revoke, Standing


class Orders:
    """What stands at the broker; ``identify`` reads the task id out of a delivery's properties."""

    def __init__(self, identify: Callable[[bytes], str | None]) -> None:
        self._identify = identify
        self._standing = Standing()

    @property
    def paused(self) -> frozenset[str]:
        """The paused queues."""
        return frozenset(self._standing.paused)

    @property
    def revoked(self) -> tuple[str, ...]:
        """The ids of the revoked tasks."""
        return tuple(self._standing.revoked)

    def forget(self) -> None:
        """A new connection will say anew all that stands."""
        self._standing = Standing()

    def hear(self, controls: Iterable[Control]) -> None:
        """These entries came in, oldest first."""
        self._standing.fold(controls)

    def revocation(self, delivery: Delivery) -> Revoke | None:
        """The entry that revokes the delivery's task, if there is one."""
        if not self._standing.revoked:
            return None
        task_id = self._identify(delivery.properties)
        return None if task_id is None else self._standing.revoked.get(task_id)

    def pauses(self, delivery: Delivery) -> bool:
        """Whether the delivery's queue is paused."""
        return delivery.queue in self._standing.paused

    def forbids(self, delivery: Delivery) -> bool:
        """Whether the delivery must not begin."""
        return self.pauses(delivery) or self.revocation(delivery) is not None

    def terminates(self, delivery: Delivery | None) -> bool:
        """Whether the delivery's task is to be ended where it runs."""
        entry = None if delivery is None else self.revocation(delivery)
        return entry is not None and entry.terminate
