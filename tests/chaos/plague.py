"""A plague: tasks that end their whole worker, supervisor first, among many good ones; the workers come back as from systemd.

Nobody is left to count, and the broker sees the same of the guilty and of their neighbours.
"""

from __future__ import annotations

import time
from random import Random
from typing import Any

from taskq.signature import Signature
from tests.apps.traces import append
from tests.chaos.arena import Arena
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import Fleet
from tests.chaos.report import Report, counts
from tests.chaos.storm import recovered
from tests.chaos.verdict import faults
from tests.support import eventually

#: How long a worker may take to find a guilty one, its own restarts included, in seconds.
FOR_EACH = 20.0


def plague(arena: Arena, seed: int, guilty: int, good: int = 1000, workers: int = 1) -> Report:
    """So many guilty tasks at random places among so many good ones."""
    chance, stage, problems = Random(f"{seed} plague"), arena.stage, list[str]()
    names = ["plague"] * guilty + ["work"] * good
    chance.shuffle(names)
    keys = [str(number) for number in range(len(names))]
    calls: list[Signature[Any]] = [
        Signature(name, [key, chance.choice((0.0, 0.0, 0.001, 0.005))] if name == "work" else [])
        for name, key in zip(names, keys, strict=True)
    ]
    since = time.monotonic()
    results = stage.client().send_many(calls)
    for name, key, result in zip(names, keys, results, strict=True):
        append(stage.trace_file, "confirmed", ids=[result.id], keys=[key], task=name, since=since)
    with Fleet(arena, workers, 0, seed) as fleet:
        try:
            eventually(
                lambda: recovered(arena, fleet), "every call has an end, and the queues are empty", FOR_EACH * (guilty + 1)
            )
        except AssertionError as error:
            problems.append(str(error))
        seconds = time.monotonic() - since
        # One that the last plague has killed may not have been started again.
        if set(codes := fleet.stop()) - {0, -9}:
            problems.append(f"workers ended with {codes} when told to stop")
        problems += [f"worker ended unasked, with {code}: {log}" for code, log in fleet.own_exits if code != -9]
    evidence = Evidence.gather(arena)
    rows = {**counts(evidence), "workers killed": len(fleet.own_exits), "seconds": round(seconds, 1)}
    return Report(
        f"plague of {guilty} with {workers} workers", seed, stage.broker.partition(":")[0], problems + faults(evidence), rows
    )
