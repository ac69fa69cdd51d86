"""A producer: ``python -m tests.chaos.producer NAME SEED`` sends a mix of tasks until the gate ``enough`` opens.

Each id that a call returned goes into the ledger as confirmed, and so do those that an error of ``send_many`` names.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable

from taskq.errors import BrokerError
from taskq.signature import Signature
from tests.apps.traces import gate, trace
from tests.chaos.tasks import app, endless, flaky, once, poison, relay, work

#: The mean pause between two calls, in seconds.
PAUSE = 0.03
BATCH = 20
#: How many of the calls that must run once are sent twice.
COPIED = 0.5


class Producer:
    """Chooses what to send, by its seed."""

    def __init__(self, name: str, seed: int) -> None:
        self.chance = random.Random(f"{seed} {name}")
        self.name = f"{name}-{os.getpid()}"
        self.number = 0
        self.choices: list[tuple[float, Callable[[], list[Signature[str]]]]] = [
            (60, lambda: [work.s(self.key())]),
            (20, lambda: [work.s(self.key(), self.chance.uniform(0.001, 0.05))]),
            (2, lambda: [work.s(self.key(), self.chance.uniform(0.5, 2.0))]),
            (8, lambda: [work.s(self.key()).set(countdown=self.chance.uniform(0.1, 3.0))]),
            (3, lambda: [work.s(self.key(), 0.0, "x" * self.chance.randrange(10_000, 200_000))]),
            (4, lambda: [relay.s(self.key(), self.chance.randrange(1, 6))]),
            (4, lambda: [flaky.s(self.key(), self.chance.randrange(1, 4))]),
            (12, lambda: [once.s(self.key(), self.chance.uniform(0.0, 0.6))]),
            (0.3, lambda: [endless.s(self.key())]),
            (3, lambda: [work.s(self.key()) for _ in range(BATCH)]),
        ]

    def key(self) -> str:
        """A text that no other call carries."""
        self.number += 1
        return f"{self.name}-{self.number}"

    def send(self) -> None:
        """One call or batch; what the broker confirmed of it is recorded."""
        (make,) = self.chance.choices([make for _, make in self.choices], [weight for weight, _ in self.choices])
        signatures, since = make(), time.monotonic()
        keys = [signature.args[0] for signature in signatures]
        about = {"task": signatures[0].task, "since": since}
        try:
            results = [signatures[0].delay()] if len(signatures) == 1 else app.send_many(signatures)
        except BrokerError as error:
            trace("refused", error=repr(error))
            if error.confirmed:
                trace("confirmed", ids=list(error.confirmed), keys=keys[: len(error.confirmed)], **about)
        else:
            trace("confirmed", ids=[result.id for result in results], keys=keys, **about)
            if signatures[0].task == "once" and self.chance.random() < COPIED:
                self.send_copy(signatures[0], results[0].id)

    def send_copy(self, signature: Signature[str], task_id: str) -> None:
        """The same call again, as a client sends it whose connection broke before the confirmation came."""
        try:
            signature.clone().set(task_id=task_id).delay()
        except BrokerError as error:
            trace("refused", error=repr(error))

    def send_poison(self) -> None:
        """A task that ends its process."""
        since = time.monotonic()
        try:
            result = poison.delay(self.chance.choice(("SIGKILL", "SIGSEGV", "exit")))
        except BrokerError as error:
            trace("refused", error=repr(error))
        else:
            trace("confirmed", ids=[result.id], keys=[""], task="poison", since=since)


def main(name: str, seed: int) -> None:
    """Send until told to stop, or until whoever started us is gone."""
    producer, parent = Producer(name, seed), os.getppid()
    while not gate("enough").exists() and os.getppid() == parent:
        if producer.chance.random() < 0.003 and not gate("peace").exists():
            producer.send_poison()
        else:
            producer.send()
        time.sleep(producer.chance.uniform(0.0, 2 * PAUSE))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
