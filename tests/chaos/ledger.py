"""The ledger: what tasks, producers and the monkey wrote down, read as values.

It knows nothing of taskq. A run without an end was ended by something; a deed is something that the monkey did, or a task that
ends its whole worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support import json_lines


@dataclass(frozen=True)
class Call:
    """A call that the broker confirmed, at ``at``; the sender began at ``since``."""

    id: str
    task: str
    key: str
    since: float
    at: float


@dataclass(frozen=True)
class Run:
    """A task that started. ``group`` is the process group of its worker, whose id is the supervisor's."""

    id: str
    task: str
    retries: int
    crashes: int
    redelivered: bool
    pid: int
    group: int
    started: float
    finished: float | None = None

    def __str__(self) -> str:
        end = "never finished" if self.finished is None else f"finished {self.finished:.3f}"
        return (
            f"run of {self.task} in {self.pid} of worker {self.group}: started {self.started:.3f}, {end}, retries"
            f" {self.retries}, crashes {self.crashes}{', redelivered' if self.redelivered else ''}"
        )


@dataclass(frozen=True)
class Deed:
    """What the monkey did, from ``at`` to ``until``: to one process, to a whole worker (``group``), or to all (neither)."""

    kind: str
    at: float
    until: float
    pid: int = 0
    group: int = 0

    def __str__(self) -> str:
        whom = f" process {self.pid}" * bool(self.pid) + f" worker {self.group}" * bool(self.group)
        return f"deed {self.kind}{whom}: {self.at:.3f} to {self.until:.3f}"


@dataclass
class Ledger:
    """The whole ledger. ``runs`` are in the order of their starts."""

    calls: dict[str, Call] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    deeds: list[Deed] = field(default_factory=list)
    refused: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Everything in the file."""
        ledger, open_runs = cls(), dict[int, Run]()
        for line in json_lines(path):
            match line["event"]:
                case "confirmed":
                    for task_id, key in zip(line["ids"], line["keys"], strict=True):
                        ledger.calls[task_id] = Call(task_id, line["task"], key, line["since"], line["at"])
                case "started":
                    run = _run(line)
                    ledger.runs.setdefault(run.id, []).append(run)
                    open_runs[run.pid] = run
                    if run.task == "plague":
                        # It ends its worker within milliseconds.
                        ledger.deeds.append(Deed("plague", run.started, run.started + 0.05, group=run.group))
                case "finished":
                    run = open_runs.pop(line["pid"])
                    runs = ledger.runs[run.id]
                    runs[runs.index(run)] = replace(run, finished=line["at"])
                case "deed":
                    ledger.deeds.append(Deed(line["kind"], line["at"], line["until"], line["pid"], line["group"]))
                case "refused":
                    ledger.refused += 1
                case "phase":
                    ledger.phases[line["name"]] = line["at"]
        return ledger

    def during(self, phase: str, until: str) -> set[str]:
        """The ids of the calls that were sent between the beginnings of two phases, if there were such."""
        begin, end = self.phases.get(phase, 0.0), self.phases.get(until, 0.0)
        return {call.id for call in self.calls.values() if begin <= call.since and call.at <= end}

    def about(self, task_id: str, last: float = 30.0) -> str:
        """What the ledger says about one id, with the deeds of its time, for who reads a failure."""
        call, runs = self.calls.get(task_id), self.runs.get(task_id, [])
        begin = call.since if call else runs[0].started if runs else 0.0
        end = max([run.finished or run.started for run in runs], default=begin + last) + 1.0
        lines = [(run.started, str(run)) for run in runs]
        lines += [
            (deed.at, str(deed)) for deed in self.deeds if deed.at <= end and deed.until >= begin and _concerns(deed, runs)
        ]
        sent = f"{call.task} sent {call.since:.3f}, confirmed {call.at:.3f}" if call else "no confirmed call"
        return "\n    ".join([f"{task_id}: {sent}", *(text for _, text in sorted(lines))])


def _run(line: dict[str, Any]) -> Run:
    names = ("id", "task", "retries", "crashes", "redelivered", "pid", "group")
    return Run(started=line["at"], **{name: line[name] for name in names})


def _concerns(deed: Deed, runs: Iterable[Run]) -> bool:
    return not (deed.pid or deed.group) or any(run.pid == deed.pid or run.group == deed.group for run in runs)
