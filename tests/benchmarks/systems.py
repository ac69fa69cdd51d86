"""What is compared: how each system's worker is started and which of its ways to send are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class System:
    """One system on one broker. ``sends`` names its senders and the share of a round's tasks that each one sends."""

    name: str
    about: str
    broker: Literal["rabbitmq", "sqlite"]
    module: str
    worker: tuple[str, ...]
    sends: Mapping[str, float]
    environment: Mapping[str, str] = field(default_factory=dict)
    peer: bool = True
    #: A bare consumer has no latency or idle memory worth comparing.
    bare: bool = False

    @property
    def one_by_one(self) -> str:
        """The sender for samples of latency: the one that users use."""
        return "unconfirmed" if "unconfirmed" in self.sends else "confirmed"


def _taskq(name: str, about: str, broker: Literal["rabbitmq", "sqlite"], **environment: str) -> System:
    module = "tests.benchmarks.tasks"
    worker = ("-m", "taskq", "worker", "-A", f"{module}:app", "-c", "2", "--log-level", "warning")
    return System(name, about, broker, module, worker, {"confirmed": 0.25, "many": 0.75}, environment, peer=False)


def _huey(name: str, about: str, fsync: str) -> System:
    module = "tests.benchmarks.huey_tasks"
    worker = ("-m", "huey.bin.huey_consumer", f"{module}.huey", "-w", "2", "-k", "process", "-q")
    return System(name, about, "sqlite", module, worker, {"unconfirmed": 1.0}, {"BENCH_FSYNC": fsync})


SYSTEMS = (
    System(
        "kombu",
        "bare Kombu consumer, 1 process, RabbitMQ",
        "rabbitmq",
        "tests.benchmarks.raw_kombu",
        ("-m", "tests.benchmarks.raw_kombu"),
        {"unconfirmed": 1.0},
        peer=False,
        bare=True,
    ),
    System(
        "celery",
        "Celery, RabbitMQ, acks_late",
        "rabbitmq",
        "tests.benchmarks.celery_tasks",
        ("-m", "celery", "-A", "tests.benchmarks.celery_tasks", "worker", "--concurrency", "2", "--loglevel", "WARNING"),
        {"confirmed": 0.125, "unconfirmed": 0.875},
    ),
    System(
        "dramatiq",
        "Dramatiq, RabbitMQ, 8 threads each",
        "rabbitmq",
        "tests.benchmarks.dramatiq_tasks",
        ("-m", "dramatiq", "tests.benchmarks.dramatiq_tasks", "--processes", "2", "--threads", "8"),
        {"unconfirmed": 1.0},
    ),
    _huey("huey", "Huey, SQLite, no fsync, at most once", "no"),
    _huey("huey-fsync", "Huey, SQLite, fsync, at most once", "yes"),
    _taskq("taskq-rabbitmq", "taskq, RabbitMQ, quorum queue", "rabbitmq", TASKQ_BACKEND="off"),
    _taskq("taskq-sqlite", "taskq, SQLite", "sqlite", TASKQ_BACKEND="off"),
    _taskq("taskq-sqlite-results", "taskq, SQLite, results kept", "sqlite"),
)
