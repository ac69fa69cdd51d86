"""``taskq doctor`` against real servers, each with something wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from click.testing import CliRunner
from redis import Redis as Client

from taskq.cli.main import cli
from taskq.message import Message, Publication, dead_letter_queue
from tests.postgres_server import Postgres
from tests.redis_server import Redis
from tests.servers import RabbitMQ
from tests.support import ROOT, Stage, eventually

Finding = dict[str, Any]
SECRET = "Zq7Kx%2FxK9qZ"


POSTING = """
from taskq import TaskQ

app = TaskQ("posting")

@app.task(queue="{queue}.post")
def post() -> None: ...
"""


def variables(stage: Stage, **settings: Any) -> dict[str, str]:
    shared = {"XDG_STATE_HOME": str(stage.folder / "state"), "TASKQ_CONCURRENCY": "2"}
    return shared | {f"TASKQ_{name.upper()}": str(value) for name, value in {**stage.keywords, **settings}.items()}


def examined(stage: Stage, *arguments: str, **settings: Any) -> list[Finding]:
    """What the doctor finds, in this process for speed. Its exit code says whether there is an error."""
    ended = CliRunner().invoke(cli, ["doctor", "--json", *arguments], env=variables(stage, **settings))
    findings: list[Finding] = json.loads(ended.stdout)
    assert ended.exit_code == int(any(finding["level"] == "error" for finding in findings)), ended.output
    assert ended.stderr == ""
    assert all(bool(finding["mend"]) is (finding["level"] != "ok") for finding in findings)
    return findings


def of(findings: list[Finding], check: str, level: str | None = None) -> list[str]:
    """The texts of a check's findings."""
    return [finding["text"] for finding in findings if finding["check"] == check and level in (None, finding["level"])]


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    """Where something is wrong; what is odd about the machine that the tests run on is not."""
    return [(f["check"], f["level"]) for f in findings if f["level"] != "ok" and f["check"] not in ("disk", "descriptors")]


def test_a_deployment_in_order(stage: Stage) -> None:
    with stage.worker() as worker:
        worker.started()
        stage.client().send_task("add", [1, 2]).get(timeout=15)
        findings = examined(stage, "-A", "tests.apps.basic")
    assert wrong(findings) == []
    (application,), (publishing,), (delays,) = (of(findings, check) for check in ("application", "publishing", "delays"))
    assert application.startswith("basic was imported in ")
    assert publishing.startswith("a message was confirmed in ")
    assert delays.startswith("a message with a delay of 1 s came after ")
    assert any(f"queue {stage.queue!r} is declared as it should be, 0 ready" in text for text in of(findings, "queues"))
    (told,) = of(findings, "workers")
    assert told.endswith(f"of basic is consuming, with 2 children; it consumes {stage.queue}")
    product = "SQLite" if stage.broker.startswith("sqlite:") else "RabbitMQ"
    assert of(findings, "broker")[0].startswith(f"{product} ")


def test_nothing_is_left_behind_and_no_worker_answers(stage: Stage) -> None:
    client = stage.client()
    before = client.publisher.stats("taskq.trial")
    findings = examined(stage)
    assert wrong(findings) == [("workers", "warning")]
    assert of(findings, "workers") == ["no worker answers within 1 s"]
    assert f"not there yet: {stage.queue}" in of(findings, "queues")[0]
    assert before is None
    assert client.publisher.stats(stage.queue) is None, "to look is not to declare"


def test_people_get_lines_and_a_sum(sqlite_stage: Stage) -> None:
    ended = CliRunner().invoke(cli, ["doctor"], env=variables(sqlite_stage))
    assert ended.exit_code == 0
    lines = ended.stdout.splitlines()
    assert lines[0].split()[:2] == ["ok", "python"]
    assert "                      -> start one: taskq worker -A …" in lines
    assert lines[-1].startswith("errors: 0, warnings: ")


def test_what_waits_and_what_has_died(stage: Stage) -> None:
    client = stage.client()
    client.send_task("add", [1, 2])
    letter = Message(headers={"id": "dead", "task": "add"}, body=b"[[], {}, {}]")
    client.publisher.publish([Publication(dead_letter_queue(stage.queue), letter)])
    client.pause(stage.queue)
    eventually(lambda: stage.depth() == 1, "it is ready")
    eventually(lambda: stage.depth(dead_letter_queue(stage.queue)) == 1, "it is dead")
    findings = examined(stage, "-A", "tests.apps.basic")
    client.resume(stage.queue)
    queue = repr(stage.queue)
    assert of(findings, "queues", "warning") == [
        f"queue {queue} is paused: 1 messages wait",
        f"queue {queue} has 1 dead letters",
    ]
    unconsumed = of(findings, "workers", "warning")[1]
    assert unconsumed.startswith(f"no worker that answers consumes queue {queue}: 1 messages wait, ")


def test_a_queue_of_the_tasks_that_no_worker_consumes(stage: Stage) -> None:
    (stage.folder / "posting.py").write_text(
        "from taskq import TaskQ\napp = TaskQ('posting')\n@app.task(queue='"
        + stage.queue
        + ".post')\ndef post() -> None: ...\n"
    )
    with stage.worker() as worker:
        worker.started()
        sys.path.insert(0, str(stage.folder))
        try:
            findings = examined(stage, "-A", "posting")
        finally:
            sys.path.remove(str(stage.folder))
            sys.modules.pop("posting", None)
    (text,) = of(findings, "workers", "warning")
    assert text == f"no worker that answers consumes queue '{stage.queue}.post': 0 messages wait, 1 tasks use it"


def test_an_application_that_cannot_be_imported_hides_nothing(sqlite_stage: Stage) -> None:
    findings = examined(sqlite_stage, "-A", "tests.apps.broken")
    (text,) = of(findings, "application", "error")
    assert text.startswith("the module 'tests.apps.broken' failed while it was imported:")
    assert of(findings, "publishing", "ok")
    assert of(examined(sqlite_stage, "-A", "tests.apps.nowhere"), "application", "error")


def test_an_application_that_starts_threads(sqlite_stage: Stage) -> None:
    command = [sys.executable, "-m", "taskq", "doctor", "--json", "-A", "tests.apps.threaded"]
    environment = sqlite_stage.environment()
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    (text,) = of(json.loads(ended.stdout), "application", "warning")
    assert text == "the import starts 1 thread, so that children can't be forked, and start slowly"


def test_results_that_are_kept_nowhere(amqp_stage: Stage) -> None:
    findings = examined(amqp_stage, "-A", "tests.apps.timetable", backend="off")
    (schedules,) = of(findings, "results", "error")
    assert schedules.startswith("schedules (")
    assert "results are off, and " in of(findings, "results", "warning")[0]
    careful = of(examined(amqp_stage, "-A", "tests.apps.trouble", backend="rpc://"), "results")
    assert careful == ["without a backend, nobody knows whether once had begun when a worker dies: it is dead-lettered"]
    assert of(findings, "backend") == ["results are off, and are kept nowhere"]


@pytest.mark.parametrize(
    "url",
    [
        "amqp://ann:{}@127.0.0.1:1//",
        "amqps://ann:{}@127.0.0.1:1//",
        "amqp://ann:{}/more@127.0.0.1:1//",
    ],
)
def test_a_broker_that_is_away_hides_nothing_and_shows_no_password(sqlite_stage: Stage, url: str) -> None:
    whole = url.format(SECRET)
    findings = examined(sqlite_stage, broker=whole, publish_timeout=1)
    (text,) = of(findings, "broker", "error")
    assert text.startswith("cannot reach amqp")
    assert of(findings, "backend", "ok"), "the backend is another server"
    assert not of(findings, "publishing")
    assert [piece for piece in ("Zq7Kx", "xK9qZ") if piece in json.dumps(findings)] == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:{}@127.0.0.1:1/0",
        "redis://127.0.0.1:1/0?password={}",
        "rediss://:{}@127.0.0.1:1/0",
        "redis+socket://ann:{}@/nowhere/redis.sock",
        "redis+socket:///nowhere/redis.sock?password={}",
        "postgresql://ann:{}@127.0.0.1:1/shop",
        "postgresql://127.0.0.1:1/shop?user=ann&password={}",
        "postgresql://ann:{}@127.0.0.1:x/shop",
    ],
)
def test_a_backend_that_is_away_hides_nothing_and_shows_no_password(sqlite_stage: Stage, url: str) -> None:
    findings = examined(sqlite_stage, backend=url.format(SECRET))
    assert of(findings, "backend", "error")
    assert of(findings, "publishing", "ok")
    shown = CliRunner().invoke(cli, ["doctor"], env=variables(sqlite_stage, backend=url.format(SECRET))).output
    assert [piece for piece in ("Zq7Kx", "xK9qZ") if piece in json.dumps(findings) + shown] == []


def test_a_broker_that_refuses_the_password(rabbitmq: RabbitMQ, amqp_stage: Stage) -> None:
    findings = examined(amqp_stage, broker=rabbitmq.url.replace("guest:guest", f"guest:{SECRET}"))
    (text,) = of(findings, "broker", "error")
    assert "refused access" in text
    assert "Zq7Kx" not in json.dumps(findings)


@pytest.fixture
def somebody_elses(amqp_stage: Stage) -> Iterator[str]:
    """The stage's queue, as another system has declared it."""
    with kombu.Connection(amqp_stage.broker) as connection, connection.channel() as channel:
        channel.queue_declare(amqp_stage.queue, durable=True, auto_delete=False)
        yield amqp_stage.queue
        channel.queue_delete(amqp_stage.queue)


def test_a_queue_with_other_arguments(amqp_stage: Stage, somebody_elses: str) -> None:
    findings = examined(amqp_stage)
    (text,) = of(findings, "queues", "error")
    assert text.startswith(f"queue {somebody_elses!r} on amqp://guest:***@")
    assert of(findings, "publishing", "ok"), "the others go on"
    assert not of(examined(amqp_stage, queue_type="classic"), "queues", "error")


def test_a_dead_letter_queue_without_a_delivery_limit(rabbitmq: RabbitMQ, amqp_stage: Stage) -> None:
    """As an earlier taskq declared it: used as it is, and RabbitMQ 4 deletes what is looked at there."""
    dead = dead_letter_queue(amqp_stage.queue)
    with kombu.Connection(amqp_stage.broker) as connection, connection.channel() as channel:
        channel.queue_declare(dead, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    amqp_stage.client().send_task("add", [1, 2])
    findings = [finding for finding in examined(amqp_stage) if "delivery limit" in finding["text"]]
    assert [(finding["level"], finding["check"]) for finding in findings] == [("warning", "queues")]
    mend = str(findings[0]["mend"])
    words = shlex.split(mend.partition(" (")[0])
    assert words[0] == "rabbitmqctl"
    rabbitmq.control(*words[1:])
    rabbitmq.control("clear_policy", words[words.index("queues") + 1])


def test_a_broker_that_takes_no_messages(rabbitmq: RabbitMQ, amqp_stage: Stage) -> None:
    rabbitmq.control("set_policy", "full", r"^taskq\.trial\.", '{"max-length": 0, "overflow": "reject-publish"}')
    try:
        findings = examined(amqp_stage, publish_timeout=2, queue_type="classic")
    finally:
        rabbitmq.control("clear_policy", "full")
    (text,) = of(findings, "trial", "error")
    assert "is the queue full?" in text
    assert of(findings, "backend", "ok")


@pytest.fixture
def forgetful(redis: Redis) -> Iterator[Redis]:
    """A server that throws things away."""
    with Client(port=redis.port) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        yield redis
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")


def test_redis_in_order(redis: Redis, sqlite_stage: Stage) -> None:
    findings = examined(sqlite_stage, backend=redis.url)
    assert wrong(findings) == [("workers", "warning")]
    assert of(findings, "backend")[0].startswith("Redis ")
    assert of(findings, "clock")[0].startswith("Redis's clock is ")


def test_redis_that_forgets(forgetful: Redis, sqlite_stage: Stage) -> None:
    findings = examined(sqlite_stage, backend=forgetful.url)
    assert "maxmemory-policy is allkeys-lru" in of(findings, "backend", "error")[0]
    assert of(findings, "backend", "warning")[0].startswith("Redis keeps no log")


def test_postgres_in_order_and_one_that_forgets(postgres: Postgres, sqlite_stage: Stage) -> None:
    assert wrong(examined(sqlite_stage, backend=postgres.url)) == [("workers", "warning")]
    forgets = examined(sqlite_stage, backend=f"{postgres.url}&options=-c%20synchronous_commit%3Doff")
    (text,) = of(forgets, "backend", "warning")
    assert text == "PostgreSQL runs with synchronous_commit=off: a crash loses results that were confirmed"


def test_postgres_that_cannot_be_written_to(postgres: Postgres, sqlite_stage: Stage) -> None:
    findings = examined(sqlite_stage, backend=f"{postgres.url}&options=-c%20default_transaction_read_only%3Don")
    (text,) = of(findings, "backend", "error")
    assert "read-only transaction" in text
    assert "cr/et" not in json.dumps(findings)


def test_a_file_that_is_no_database(sqlite_stage: Stage) -> None:
    file = sqlite_stage.folder / "notes.txt"
    file.write_text("no database " * 100)
    findings = examined(sqlite_stage, broker=f"sqlite:///{file}", backend="off")
    assert "is not an SQLite database" in of(findings, "broker", "error")[0]
    assert not of(findings, "publishing")


def test_delayed_messages_that_no_worker_lets_go_are_not_tried(sqlite_stage: Stage) -> None:
    began = time.monotonic()
    (text,) = of(examined(sqlite_stage), "delays")
    assert text.startswith("not tried: ")
    assert time.monotonic() - began < 5


def run(command: str, stage: Stage, **settings: Any) -> list[Finding]:
    """What the doctor finds under the circumstances that a shell makes; ``$doctor`` is its command."""
    doctor = f"exec {sys.executable} -m taskq doctor --json"
    environment = stage.environment() | variables(stage, **settings)
    shell = ["sh", "-c", command.replace("$doctor", doctor)]
    ended = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    findings: list[Finding] = json.loads(ended.stdout or f'["{ended.stderr}"]')
    return findings


def test_too_few_files_may_be_open(sqlite_stage: Stage) -> None:
    findings = run("ulimit -n 90; $doctor", sqlite_stage)
    assert of(findings, "descriptors", "warning") == ["90 files may be open at once, and a worker with 2 children wants 120"]


def test_a_disk_that_is_small_and_in_memory(sqlite_stage: Stage, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=8m none {disk} && $doctor"
    file = f"sqlite:///{disk}/taskq.db"
    findings = run(f"unshare --user --map-root-user --mount sh -c '{mount}'", sqlite_stage, broker=file, backend=file)
    assert "in memory, where a restart of the machine loses it" in of(findings, "disk", "warning")[0]
    assert of(findings, "disk", "error") == [f"broker {disk}/taskq.db: 8 MiB are free"]
