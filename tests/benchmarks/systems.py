"""What is compared: how each system's worker is started and which of its ways to send are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class System:
    """One system on one broker. ``sends`` names its senders, in order, and the share of a round's tasks that each one sends."""

    name: str
    about: str
    broker: Literal["rabbitmq", "sqlite"]
    module: str
    worker: tuple[str, ...]
    sends: Mapping[str, float]
    environment: Mapping[str, str] = field(default_factory=dict)
    peer: bool = True
    latency: bool = True
    #: Not where it would say the same as another system's.
    idle: bool = True
    #: Measured only when asked for.
    extra: bool = False

    @property
    def one_by_one(self) -> str:
        """The sender for samples of latency: the one that users use."""
        return "unconfirmed" if "unconfirmed" in self.sends else "confirmed"


_TASKQ = System(
    "taskq-rabbitmq",
    "taskq, RabbitMQ, quorum queue",
    "rabbitmq",
    "tests.benchmarks.tasks",
    ("-m", "taskq", "worker", "-A", "tests.benchmarks.tasks:app", "-c", "2", "--log-level", "warning"),
    {"many": 0.75, "confirmed": 0.25},
    {"TASKQ_BACKEND": "off"},
    peer=False,
)
_HUEY = System(
    "huey",
    "Huey, SQLite, no fsync, at most once",
    "sqlite",
    "tests.benchmarks.huey_tasks",
    ("-m", "huey.bin.huey_consumer", "tests.benchmarks.huey_tasks.huey", "-w", "2", "-k", "process", "-q"),
    {"unconfirmed": 1.0},
    {"BENCH_FSYNC": "no"},
)

SYSTEMS = (
    System(
        "kombu",
        "bare Kombu consumer, 1 process, RabbitMQ",
        "rabbitmq",
        "tests.benchmarks.raw_kombu",
        ("-m", "tests.benchmarks.raw_kombu"),
        {"unconfirmed": 1.0},
        peer=False,
        latency=False,
        idle=False,
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
    _HUEY,
    replace(
        _HUEY, name="huey-fsync", about="Huey, SQLite, fsync, at most once", environment={"BENCH_FSYNC": "yes"}, idle=False
    ),
    _TASKQ,
    replace(
        _TASKQ,
        name="taskq-rabbitmq-classic",
        about="taskq, RabbitMQ, classic queue",
        environment={"TASKQ_BACKEND": "off", "TASKQ_QUEUE_TYPE": "classic"},
        extra=True,
    ),
    replace(_TASKQ, name="taskq-sqlite", about="taskq, SQLite", broker="sqlite"),
    replace(
        _TASKQ, name="taskq-sqlite-results", about="taskq, SQLite, results kept", broker="sqlite", environment={}, idle=False
    ),
)
