"""A Celery client's ``expires=`` has RabbitMQ itself expire the message, before any worker sees it."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import kombu

from taskq.message import dead_letter_queue
from tests.servers import RabbitMQ
from tests.support import Stage


def send_as_celery(stage: Stage, seconds: float) -> str:
    """A call that Celery's client sends with ``expires=seconds``."""
    task_id = str(uuid.uuid4())
    expires = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    headers: dict[str, Any] = {
        "lang": "py",
        "task": "add",
        "id": task_id,
        "root_id": task_id,
        "expires": expires.isoformat(),
        "retries": 0,
    }
    with kombu.Connection(stage.broker) as connection, connection.channel() as channel:
        kombu.Producer(channel).publish(
            json.dumps([[1, 1], {}, {}]).encode(),
            routing_key=stage.queue,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers,
            correlation_id=task_id,
            expiration=seconds,
            delivery_mode=2,
        )
    return task_id


def declared(stage: Stage) -> None:
    stage.client().send_task("add", (1, 1))
    stage.drain(1)


def test_in_a_queue_of_ours_it_becomes_a_dead_letter(amqp_stage: Stage) -> None:
    declared(amqp_stage)
    task_id = send_as_celery(amqp_stage, 0.2)
    (letter,) = amqp_stage.dead_letters(1)
    assert letter.headers["id"] == task_id
    assert letter.headers["x-death"][0]["reason"] == "expired"


def test_the_policy_that_doctor_names_hands_it_to_a_worker(amqp_stage: Stage, rabbitmq: RabbitMQ) -> None:
    """RabbitMQ would drop it: a queue that is shared with a Celery fleet has no place for what is dead."""
    amqp_stage.settings["queue_type"] = "classic"
    declared(amqp_stage)
    policy = {"dead-letter-exchange": "", "dead-letter-routing-key": f"{amqp_stage.queue}.returned"}
    rabbitmq.control("set_policy", "--apply-to", "queues", "expired", f"^{amqp_stage.queue}$", json.dumps(policy))
    try:
        task_id = send_as_celery(amqp_stage, 0.2)
        amqp_stage.until(amqp_stage.depth, "it has expired")
        with amqp_stage.worker().started():
            result = amqp_stage.client().result(task_id)
            amqp_stage.until(lambda: result.status == "REVOKED", "it is recorded as expired")
        assert not amqp_stage.depth(dead_letter_queue(amqp_stage.queue))
    finally:
        rabbitmq.control("clear_policy", "expired")
