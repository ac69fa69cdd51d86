"""A storm: rage, then peace (graceful restarts and poison, under load), then calm, and the verdict.

The run's pass or failure is in ``Report.faults``; the table says what happened.
"""

from __future__ import annotations

import time
from random import Random

from taskq.signature import Signature
from taskq.workers.crashes import TAKEN_SECONDS
from tests.apps.traces import append
from tests.chaos.arena import Arena
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Ledger
from tests.chaos.monkey import Monkey
from tests.chaos.report import Report, counts
from tests.chaos.verdict import faults
from tests.support import eventually

WORKERS = 3
PRODUCERS = 3
#: The part of the time that is rage.
RAGE = 0.6
WAYS_TO_DIE = ("SIGKILL", "SIGSEGV", "SIGABRT", "exit")
#: How long the rest may take once nobody sends any more, in seconds.
RECOVERY = 60.0


def storm(arena: Arena, seed: int, seconds: float, workers: int = WORKERS) -> Report:
    """Run one; takes ``seconds`` and the recovery."""
    stage, problems = arena.stage, list[str]()

    def phase(name: str) -> None:
        append(stage.trace_file, "phase", name=name)

    with Fleet(arena, workers, PRODUCERS, seed) as fleet:
        monkey = Monkey(arena, fleet, seed)
        fleet.tend_until_all_consume()
        phase("rage")
        monkey.rage(seconds * RAGE)
        fleet.tend_until_all_consume()
        stage.open_gate("peace")
        phase("peace")
        send_poison(arena, Random(f"{seed} poison"))
        monkey.roll(seconds * (1.0 - RAGE))
        fleet.finish_producing()
        phase("calm")
        began = time.monotonic()
        # RabbitMQ does not say what it delays: a copy of a message that runs elsewhere comes back after this time.
        quiet = Quiet(0.0 if arena.one_transaction else TAKEN_SECONDS + 1.0)
        try:
            what = "every confirmed call has an end, and the queues are empty"
            eventually(lambda: quiet.lasts(recovered(arena, fleet)), what, RECOVERY)
        except AssertionError as error:
            problems.append(str(error))
        recovery = time.monotonic() - began - quiet.seconds
        codes = fleet.stop()
        if any(codes):
            problems.append(f"workers ended with {codes} when told to stop")
        problems += [*monkey.faults, *(f"worker ended unasked, with {code}: {log}" for code, log in fleet.own_exits)]
        if running := fleet.left_running():
            problems.append(f"processes outlived their worker: {running}")
    evidence = Evidence.gather(arena)
    rows = {**counts(evidence), **monkey.rows(), "workers started": len(fleet.every), "recovery, s": round(recovery, 1)}
    return Report("storm", seed, stage.broker.partition(":")[0], problems + faults(evidence), rows)


def send_poison(arena: Arena, chance: Random) -> None:
    """One of each kind, among what the producers send."""
    since, client = time.monotonic(), arena.stage.client()
    kinds = chance.sample(WAYS_TO_DIE, len(WAYS_TO_DIE))
    results = client.send_many([Signature[None]("poison", [how]) for how in kinds])
    ids = [result.id for result in results]
    append(arena.stage.trace_file, "confirmed", ids=ids, keys=[""] * len(ids), task="poison", since=since)


class Quiet:
    """Whether something has held for so many seconds on end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def lasts(self, holds: bool) -> bool:
        """Whether it holds, as it has for long enough."""
        now = time.monotonic()
        self._since = (now if self._since is None else self._since) if holds else None
        return self._since is not None and now - self._since >= self.seconds


def recovered(arena: Arena, fleet: Fleet) -> bool:
    """Whether all that was confirmed has ended."""
    fleet.tend()
    time.sleep(0.2)
    calls = Ledger.read(arena.stage.trace_file).calls
    return calls.keys() <= arena.ended() and not arena.left()
