"""Evidence: what is there when the chaos is over, from the ledger, from the results' file and from the queues."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec

from taskq.message import Message, dead_letter_queue
from tests.chaos.arena import QUEUE, Arena
from tests.chaos.ledger import Deed, Ledger, Run

#: For what is seen a little later than it happened, in seconds.
SLACK = 1.0
#: Deeds that end one process or the children of one worker; the supervisor lives and counts.
AGAINST_CHILDREN = ("child", "stopped child", "zygote")
#: Deeds that end a supervisor, so that nobody is left who knows.
AGAINST_SUPERVISORS = ("supervisor", "whole worker", "plague")
#: Deeds that end connections.
AGAINST_CONNECTIONS = ("broker", "cut all", "cut one")
EVERYTHING = (*AGAINST_CHILDREN, *AGAINST_SUPERVISORS, *AGAINST_CONNECTIONS)


@dataclass
class Evidence:
    """Everything that the verdict is about. ``recorded`` holds every end of an id that was ever stored, with its moment."""

    ledger: Ledger
    one_transaction: bool
    max_crashes: int
    ends: dict[str, dict[str, Any]]
    recorded: dict[str, list[tuple[str, float]]]
    letters: dict[str, list[Message]]
    left: dict[str, int]

    @classmethod
    def gather(cls, arena: Arena) -> Evidence:
        """Read it all; nothing may run any more."""
        recorded, clocks = defaultdict(list), time.time() - time.monotonic()
        with arena.connection() as connection:
            ends = {task_id: msgspec.json.decode(meta) for task_id, meta in connection.execute("select id, meta from results")}
            for task_id, status, at in connection.execute("select id, status, at from ends order by rowid"):
                if status not in ("STARTED", "RETRY"):
                    recorded[task_id].append((status, at - clocks))
        letters, dead = defaultdict(list), dead_letter_queue(QUEUE)
        for letter in arena.stage.drain(arena.stage.depth(dead) or 0, dead):
            letters[str(letter.headers.get("id"))].append(letter)
        ledger, settings = Ledger.read(arena.stage.trace_file), arena.stage.effective()
        return cls(ledger, arena.one_transaction, settings.max_crashes, ends, dict(recorded), dict(letters), arena.left())

    def attempts(self, task_id: str) -> list[list[Run]]:
        """The runs of an id, those of one attempt together; more than one run of an attempt is a repetition."""
        attempts = defaultdict(list)
        for run in self.ledger.runs.get(task_id, []):
            attempts[run.retries].append(run)
        return [attempts[retries] for retries in sorted(attempts)]

    def custody_ended(self, run: Run) -> float:
        """Until when the message of a run was at risk: its end was recorded, or it ran again."""
        begun = run.finished or run.started
        after = [at for _, at in self.recorded.get(run.id, []) if at >= begun - 0.01]
        after += [other.started for other in self.ledger.runs[run.id] if other.started > run.started]
        return min(after, default=begun) + SLACK

    def hits(self, run: Run, *kinds: str) -> list[Deed]:
        """The deeds of these kinds that fell into the time of a run, and on its process, its worker, or on all."""
        return [deed for deed in self.ledger.deeds if deed.kind in kinds and self._hit(deed, run)]

    def _hit(self, deed: Deed, run: Run) -> bool:
        if deed.kind in AGAINST_CONNECTIONS:
            return deed.until >= run.started - SLACK and deed.at <= self.custody_ended(run)
        # The kernel takes a moment to end the children of what was killed, and they go on until then.
        if deed.until + (0.0 if deed.pid == run.pid else SLACK) < run.started:
            return False
        if deed.kind in AGAINST_SUPERVISORS:
            return deed.group == run.group and deed.at <= self.custody_ended(run)
        over = float("inf") if run.finished is None else run.finished + SLACK
        return deed.at <= over and (deed.group == run.group if deed.kind == "zygote" else deed.pid == run.pid)

    def meanwhile(self, task_id: str) -> list[Deed]:
        """The deeds that may have doubled the message itself, whoever held it: where what follows and the ack are two steps."""
        if self.one_transaction:
            return []
        call, runs = self.ledger.calls.get(task_id), self.ledger.runs.get(task_id, [])
        begin, end = call.since if call else 0.0, max((run.started for run in runs), default=float("inf"))
        kinds = (*AGAINST_SUPERVISORS, *AGAINST_CONNECTIONS)
        return [deed for deed in self.ledger.deeds if deed.kind in kinds and deed.at <= end and deed.until >= begin - SLACK]

    def doubled(self, task_id: str) -> bool:
        """Whether the message may have been doubled, and each of the two come to an end of its own."""
        return len(self.recorded.get(task_id, [])) - 1 in range(1, 1 + len(self.meanwhile(task_id)))

    def unexplained(self, task_id: str) -> list[Run]:
        """The runs after which another of the same attempt came for no recorded reason."""
        elsewhere = set(self.meanwhile(task_id))
        unexplained, reasons, more, copies = [], set(elsewhere), 0, 1
        for runs in self.attempts(task_id):
            for run in runs[:-1]:
                hits = self.hits(run, *EVERYTHING)
                reasons.update(hits)
                if not hits and not elsewhere:
                    unexplained.append(run)
            # A message that was doubled comes twice in each attempt that follows, for the same reason.
            more += max(0, len(runs) - copies)
            copies = max(copies, len(runs)) if elsewhere else 1
        return self.ledger.runs.get(task_id, []) if more > len(reasons) and not unexplained else unexplained
