"""The start of a worker: one clear error where it cannot work, and children in whatever way is safe."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import kombu
import pytest

from taskq.signature import Signature
from tests.integration.test_worker_crashes import parent_of
from tests.support import Stage, Worker, eventually

BASIC = "tests.apps.basic:app"


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("tests.apps.nowhere:app", "no module"),
        ("tests.apps.basic:nothing", "did you mean tests.apps.basic:app"),
        ("tests.apps.basic:trace", "is no TaskQ, its type is function"),
        ("tests/apps/basic.py", "tests.apps.basic"),
        ("tests.apps.broken:app", "no database here"),
    ],
)
def test_an_application_that_cannot_be_had_is_one_clear_error(sqlite_stage: Stage, app: str, says: str) -> None:
    with sqlite_stage.worker(app) as worker:
        assert worker.wait() == 1
        assert says in worker.text
        assert worker.text.count("Error") - worker.text.count("RuntimeError") == 1
        assert worker.logged("worker_started") == []
        eventually(lambda: not worker.processes(), "nothing is left")


def test_wrong_usage_is_exit_code_2(sqlite_stage: Stage) -> None:
    for arguments in ([], ["-A", BASIC, "--no-such-option"], ["-A", BASIC, "-c", "many"]):
        command = [sys.executable, "-m", "taskq", "worker", *arguments]
        done = subprocess.run(command, env=sqlite_stage.environment(), capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_an_impossible_setting_is_one_clear_error(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(BASIC, TASKQ_CONCURENCY="2") as worker:
        assert worker.wait() == 1
        assert "did you mean 'concurrency'" in worker.text
        assert worker.logged("worker_started") == []


def test_a_queue_with_other_arguments_is_one_clear_error(amqp_stage: Stage) -> None:
    with kombu.Connection(amqp_stage.broker) as connection, connection.channel() as channel:
        channel.queue_declare(amqp_stage.queue, durable=True, auto_delete=False)
    with amqp_stage.worker() as worker:
        assert worker.wait() == 1
        assert amqp_stage.queue in worker.text
        assert "classic" in worker.text
        assert "Traceback" not in worker.text


def test_a_file_that_is_no_database_is_one_clear_error(sqlite_stage: Stage) -> None:
    path = sqlite_stage.folder / "taskq.db"
    path.write_text("precious notes\n" * 100)
    with sqlite_stage.worker() as worker:
        assert worker.wait() == 1
        assert "not an SQLite database" in worker.text
        assert "Traceback" not in worker.text
    assert path.read_text() == "precious notes\n" * 100


def test_children_that_die_at_their_start_are_restarted_with_back_off(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker("tests.apps.fragile:app", "-c", "1", "--start-method", "spawn") as worker:
        result = stage.client().send_task("add", [1, 2])
        eventually(lambda: len(worker.logged("child_died", at_start=True)) >= 3, "the child has died three times")
        delays = [line["restart_in"] for line in worker.logged("child_died")]
        assert delays == sorted(set(delays)), "each delay is longer than the one before"
        assert len(stage.traces("import failed")) <= len(delays) + 1
        stage.open_gate("mended")
        assert result.get(timeout=15) == 3
        assert worker.logged("task_crashed") == []
        assert worker.stop() == 0


def test_spawned_children(stage: Stage) -> None:
    with stage.worker(BASIC, "--start-method", "spawn") as worker:
        client = stage.client()
        client.send_many([Signature("hold", ["a", "gate"]), Signature("hold", ["b", "gate"])])
        traces = stage.traced("hold", 2)
        one, other = (trace["pid"] for trace in traces)
        assert one != other
        assert b"taskq.workers.child" in Path(f"/proc/{one}/cmdline").read_bytes()
        stage.open_gate("gate")
        assert client.send_task("die", ["SIGKILL", 1]).get(timeout=15) == 1
        assert worker.logged("worker_started", start_method="spawn")
        assert worker.stop() == 0


def test_an_application_with_threads_is_spawned_not_forked(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker("tests.apps.threaded:app") as worker:
        assert sqlite_stage.client().send_task("add", [1, 2]).get(timeout=15) == 3
        (line,) = worker.logged("start_method_changed")
        assert (line["wanted"], line["used"]) == ("fork", "spawn")
        assert worker.stop() == 0


def test_forked_children_are_forked_by_the_zygote(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker() as worker:
        sqlite_stage.client().send_task("mark", ["one"]).get(timeout=15)
        (trace,) = sqlite_stage.traces("mark")
        assert parent_of(parent_of(trace["pid"])) == worker.pid
        assert worker.logged("start_method_changed") == []


def cpu_seconds(worker: Worker) -> float:
    """The processor time of all the worker's processes together."""
    ticks = 0
    for process in worker.processes():
        ticks += sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / 100


def test_an_idle_worker_sleeps(stage: Stage) -> None:
    with stage.worker() as worker:
        stage.client().send_task("add", [1, 2]).get(timeout=15)
        before, started = cpu_seconds(worker), time.monotonic()
        eventually(lambda: time.monotonic() - started > 3.0)
        assert (cpu_seconds(worker) - before) / (time.monotonic() - started) <= 0.02
