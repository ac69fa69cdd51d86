"""Schedulers besieged, in short: each tick is run once, whichever of them is killed or stopped when."""

from __future__ import annotations

import pytest

from tests.chaos.schedules import besiege
from tests.postgres_server import Postgres
from tests.redis_server import Redis
from tests.support import Stage

SEED = 7


@pytest.fixture
def redis_stage(amqp_stage: Stage, redis: Redis) -> Stage:
    """RabbitMQ and Redis."""
    amqp_stage.settings["backend"] = redis.url
    return amqp_stage


@pytest.fixture
def postgres_stage(amqp_stage: Stage, postgres: Postgres) -> Stage:
    """RabbitMQ and PostgreSQL."""
    amqp_stage.settings["backend"] = postgres.url
    return amqp_stage


@pytest.mark.timeout(90)
@pytest.mark.parametrize("servers", ["sqlite_stage", "redis_stage"])
def test_each_tick_is_run_once_while_leaders_are_killed(request: pytest.FixtureRequest, servers: str) -> None:
    siege = besiege(request.getfixturevalue(servers), seconds=10.0, kill_every=1.0, seed=SEED)
    print(siege)
    assert siege.kills >= 2
    assert siege.faults == []


@pytest.mark.timeout(90)
@pytest.mark.parametrize("servers", ["sqlite_stage", "postgres_stage"])
def test_each_tick_is_run_once_though_stopped_leaders_wake_up_again(request: pytest.FixtureRequest, servers: str) -> None:
    siege = besiege(request.getfixturevalue(servers), seconds=6.0, kill_every=1.0, seed=SEED, schedulers=2, stop=1.0)
    print(siege)
    assert siege.stops >= 1
    assert siege.faults == []
