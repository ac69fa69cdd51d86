"""The monkey: at random instants it does something bad, and writes down to whom and when."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.apps.traces import append
from tests.chaos.arena import Arena
from tests.chaos.fleet import Fleet
from tests.support import Worker, eventually

#: How often it does what, relative to each other; what concerns the broker as a whole is chosen by ``HURT_EVERY``.
WEIGHTS = {"child": 60, "stopped child": 4, "zygote": 5, "supervisor": 8, "whole worker": 4, "producer": 10, "roll": 5}
PAUSE = (0.02, 0.35)
#: How often the broker is hurt, in seconds.
HURT_EVERY = (0.5, 3.0)
#: How soon a worker must have replaced a child that is stopped, in seconds.
NOTICED_WITHIN = 15.0


class Monkey:
    """Its choices come from its seed; when they take effect depends on the machine."""

    def __init__(self, arena: Arena, fleet: Fleet, seed: int) -> None:
        self.arena = arena
        self.fleet = fleet
        self.chance = Random(f"{seed} monkey")
        self.hurting = Random(f"{seed} broker")
        self.deeds: Counter[str] = Counter()
        self.stopped: dict[int, float] = {}
        self.longest_stop = 0.0
        self.faults: list[str] = []

    def rows(self) -> dict[str, object]:
        """What the table says about its deeds."""
        counts = {f"deed: {kind}": count for kind, count in sorted(self.deeds.items())}
        return {**counts, "longest stop of a child, s": round(self.longest_stop, 1)}

    def rage(self, seconds: float) -> None:
        """Do everything, for so many seconds; returns when the last thing is over."""
        end = time.monotonic() + seconds
        broker = threading.Thread(target=self._hurt_broker, args=(end,), daemon=True)
        broker.start()
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(*PAUSE))
            self.fleet.tend()
            self.look_after_the_stopped()
            (kind,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
            self._do(kind)
        broker.join()
        self._have_the_stopped_replaced()

    def _have_the_stopped_replaced(self) -> None:
        try:
            eventually(self.look_after_the_stopped, "stopped children are replaced", NOTICED_WITHIN)
        except AssertionError as error:
            self.faults.append(f"{error}: {self.stopped}")
            # The rest of the evidence is worth having all the same.
            for victim in self.stopped:
                os.kill(victim, signal.SIGCONT)
            self.stopped.clear()

    def look_after_the_stopped(self) -> bool:
        """Write down which stopped children are gone; whether all are."""
        for victim, since in list(self.stopped.items()):
            if parent_of(victim) is None:
                del self.stopped[victim]
                self.longest_stop = max(self.longest_stop, time.monotonic() - since)
                self._record("stopped child", since, pid=victim)
        return not self.stopped

    def roll(self, seconds: float) -> None:
        """Nothing but graceful restarts, one after the other."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._do("roll")
            pause = time.monotonic() + self.chance.uniform(0.3, 1.0)
            while time.monotonic() < pause:
                time.sleep(0.02)
                self.fleet.tend()

    def _hurt_broker(self, end: float) -> None:
        if not self.arena.hurts:
            return
        # Each thing once before any comes twice.
        order = self.hurting.sample(list(self.arena.hurts), len(self.arena.hurts))
        while time.monotonic() < end:
            if not order:
                order = self.hurting.sample(list(self.arena.hurts), len(self.arena.hurts))
            kind = order.pop()
            begin = time.monotonic()
            self.arena.hurts[kind](self.hurting)
            self._record(kind, begin)
            pause = self.hurting.uniform(*HURT_EVERY)
            time.sleep(max(0.0, min(pause, end - time.monotonic())))

    def _do(self, kind: str) -> None:
        index = self.chance.randrange(len(self.fleet.workers))
        worker, begin = self.fleet.workers[index], time.monotonic()
        if worker.process.poll() is not None:
            return
        match kind:
            case "child" | "stopped child" | "zygote":
                number = signal.SIGSTOP if kind == "stopped child" else signal.SIGKILL
                self._signal_one(kind, worker, number, begin)
            case "supervisor" | "whole worker":
                self.fleet.asked.add(worker.pid)
                worker.send(signal.SIGKILL, group=kind == "whole worker")
                worker.wait()
                self._record(kind, begin, group=worker.pid)
            case "roll" if worker.pid not in self.fleet.asked:  # a second signal would hurry it, which is not graceful
                self.fleet.asked.add(worker.pid)
                # Kubernetes and terminals signal the whole group, systemd the supervisor.
                worker.send(signal.SIGTERM, group=self.chance.random() < 0.5)
                self._record(kind, begin, group=worker.pid)
            case "producer":
                producer = self.fleet.producers[index % len(self.fleet.producers)]
                producer.kill()
                producer.wait()
                self._record(kind, begin, pid=producer.pid)

    def _signal_one(self, kind: str, worker: Worker, number: int, begin: float) -> None:
        """Signal the worker's zygote or one of its children, if it has any."""
        # A zygote that dies before the application is imported is a start that failed: the worker ends then.
        if not worker.logged("worker_started"):
            return
        parents = {process: parent_of(process) for process in worker.processes()}
        zygotes = {process for process, parent in parents.items() if parent == worker.pid}
        victims = sorted(zygotes if kind == "zygote" else {one for one, parent in parents.items() if parent in zygotes})
        if not victims:
            return
        victim = self.chance.choice(victims)
        with suppress(ProcessLookupError):
            os.kill(victim, number)
            if number == signal.SIGSTOP:
                # Over when somebody has ended it: the worker, or what ended the worker.
                self.stopped.setdefault(victim, begin)
            else:
                self._record(kind, begin, pid=victim, group=worker.pid if kind == "zygote" else 0)

    def _record(self, kind: str, begin: float, *, pid: int = 0, group: int = 0) -> None:
        self.deeds[kind] += 1
        append(self.fleet.stage.trace_file, "deed", kind=kind, at=begin, until=time.monotonic(), pid=pid, group=group)


def parent_of(process: int) -> int | None:
    """The parent of a living process; zombies are dead."""
    with suppress(FileNotFoundError, ProcessLookupError):
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
        return None if state == "Z" else int(parent)
    return None
