"""The report: what came out, as a table of numbers and, where a promise was broken, in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.table import Table

from tests.chaos.evidence import Evidence
from tests.chaos.verdict import POISONS


@dataclass(frozen=True)
class Report:
    """What came out of a storm or a plague: ``faults`` in words, empty where every promise was kept."""

    what: str
    seed: int
    broker: str
    faults: list[str]
    rows: dict[str, object]

    def text(self) -> str:
        """The faults, each with the seed that led to it."""
        return "".join(f"seed {self.seed}, {self.what} on {self.broker}: {fault}\n" for fault in self.faults)

    def table(self) -> Table:
        """The numbers."""
        table = Table(title=f"{self.what} on {self.broker}, seed {self.seed}", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in self.rows.items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
        return table


def counts(evidence: Evidence) -> dict[str, object]:
    """What the table shows."""
    ledger = evidence.ledger
    attempts = [runs for task_id in ledger.runs for runs in evidence.attempts(task_id)]
    repeated = sum(len(runs) - 1 for runs in attempts if runs[0].task not in POISONS)
    status = Counter(end["status"] for end in evidence.ends.values())
    return {
        "tasks confirmed": len(ledger.calls),
        "calls refused": ledger.refused,
        "runs": sum(map(len, attempts)),
        "repeated": repeated,
        "ended in two ways": sum(1 for ends in evidence.recorded.values() if len({status for status, _ in ends}) > 1),
        "lost": len(ledger.calls.keys() - evidence.ends.keys()),
        "succeeded": status["SUCCESS"],
        "dead-lettered": len(evidence.letters),
    }
