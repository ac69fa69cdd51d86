"""What was measured, as a table of absolute figures, a table of ratios against the targets, and JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.benchmarks.measure import Figures
from tests.benchmarks.systems import SYSTEMS

Pair = tuple[str, str]


class Missing(Exception):
    """A target compares with a system that was not measured in this run."""


@dataclass(frozen=True)
class Target:
    """A figure of taskq, over another system's if ``other`` is given, that must be at least or at most ``bound``."""

    about: str
    own: Pair
    sign: Literal["≥", "≤"]
    bound: float
    other: Pair | None = None
    unit: str = "×"
    scale: float = 1.0

    def value(self, figures: Figures) -> float:
        """The median over the rounds; of ratios, the median of each round's ratio. Raises ``Missing``."""
        own = rounds(figures, *self.own)
        if self.other is None:
            return statistics.median(own) * self.scale
        return statistics.median(a / b for a, b in zip(own, rounds(figures, *self.other), strict=True))

    def met(self, value: float) -> bool:
        return value >= self.bound if self.sign == "≥" else value <= self.bound


RABBITMQ, SQLITE = "taskq-rabbitmq", "taskq-sqlite"
TARGETS = (
    Target("RabbitMQ: drain / Celery", (RABBITMQ, "drain"), "≥", 8, ("celery", "drain")),
    Target("RabbitMQ: drain / Dramatiq", (RABBITMQ, "drain"), "≥", 3, ("dramatiq", "drain")),
    Target("RabbitMQ: supervisor CPU per task", (RABBITMQ, "supervisor cpu"), "≤", 25, unit="µs", scale=1e6),
    Target("RabbitMQ: enqueue confirmed / Celery confirmed", (RABBITMQ, "confirmed"), "≥", 1.5, ("celery", "confirmed")),
    Target("RabbitMQ: send_many / Celery confirmed", (RABBITMQ, "many"), "≥", 10, ("celery", "confirmed")),
    Target("RabbitMQ: latency p50 / Dramatiq", (RABBITMQ, "p50"), "≤", 1, ("dramatiq", "p50")),
    Target("RabbitMQ: latency p99 / Dramatiq", (RABBITMQ, "p99"), "≤", 1, ("dramatiq", "p99")),
    Target("SQLite: drain / Huey without fsync", (SQLITE, "drain"), "≥", 1.2, ("huey", "drain")),
    Target("SQLite: latency p50", (SQLITE, "p50"), "≤", 2, unit="ms", scale=1e3),
    *(
        target
        for name, system in (("RabbitMQ", RABBITMQ), ("SQLite", SQLITE))
        for target in (
            Target(f"{name}: idle memory (PSS)", (system, "memory"), "≤", 60, unit="MB"),
            Target(f"{name}: idle CPU", (system, "idle cpu"), "≤", 0.5, unit="%", scale=100),
        )
    ),
)

#: Heading, figure, factor, decimals.
COLUMNS = (
    ("enqueue/s", "unconfirmed", 1, 0),
    ("confirmed/s", "confirmed", 1, 0),
    ("send_many/s", "many", 1, 0),
    ("drain/s", "drain", 1, 0),
    ("CPU µs", "cpu", 1e6, 0),
    ("main µs", "supervisor cpu", 1e6, 0),
    ("p50 ms", "p50", 1e3, 2),
    ("p99 ms", "p99", 1e3, 2),
    ("idle MB", "memory", 1, 1),
    ("idle CPU %", "idle cpu", 100, 2),
)


def rounds(figures: Figures, system: str, figure: str) -> list[float]:
    """What was found: a value of each round, or for percentiles of latency one value over the samples of all rounds."""
    found = figures.get(system, {})
    values = found.get("latency" if figure in ("p50", "p99") else figure)
    if not values:
        raise Missing(f"{figure} of {system}")
    if figure == "p50":
        return [statistics.median(values)]
    if figure == "p99":
        return [sorted(values)[math.ceil(0.99 * len(values)) - 1]]
    return values


def absolute(figures: Figures) -> str:
    """The table of medians, a row for each system."""
    table = [["", *(heading for heading, *_ in COLUMNS)]]
    for system in SYSTEMS:
        if system.name in figures:
            cells = [_cell(figures, system.name, figure, factor, decimals) for _, figure, factor, decimals in COLUMNS]
            table.append([system.about, *cells])
    return _aligned(table)


def against_targets(figures: Figures) -> str:
    """The table of targets: what was wanted, what was seen."""
    table = [["", "target", "seen", ""]]
    for row in verdicts(figures):
        seen = "not measured" if row["seen"] is None else f"{row['seen']:.2f} {row['unit']}"
        verdict = {True: "pass", False: "FAIL", None: ""}[row["met"]]
        table.append([row["about"], f"{row['sign']} {row['bound']:g} {row['unit']}", seen, verdict])
    return _aligned(table)


def verdicts(figures: Figures) -> list[dict[str, Any]]:
    """For each target what was seen and whether it is met; None where a system was not measured."""
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        row = {"about": target.about, "sign": target.sign, "bound": target.bound, "unit": target.unit}
        try:
            value = target.value(figures)
            rows.append({**row, "seen": value, "met": target.met(value)})
        except Missing:
            rows.append({**row, "seen": None, "met": None})
    return rows


def as_json(figures: Figures, about: Mapping[str, Any]) -> dict[str, Any]:
    """All of it: the circumstances, every round's values and the targets."""
    return {**about, "figures": {system: dict(found) for system, found in figures.items()}, "targets": verdicts(figures)}


def _cell(figures: Figures, system: str, figure: str, factor: float, decimals: int) -> str:
    try:
        return f"{statistics.median(rounds(figures, system, figure)) * factor:,.{decimals}f}"
    except Missing:
        return ""


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in table
    )
    return "\n".join("  ".join(cells).rstrip() for cells in lines)
