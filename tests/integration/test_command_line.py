"""The commands that talk to a broker, as a shell runs them, on the SQLite broker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from taskq.control import Revoke
from taskq.message import Message, Publication
from tests.servers import wait_until

APP = """
from datetime import date
from taskq import TaskQ

app = TaskQ("shop", broker="sqlite:///{folder}/shop.db", grace=7)

@app.task(queue="mail")
def add(a: int, b: int = 1) -> int:
    return a + b

@app.task
def tomorrow(day: date) -> date:
    return day.replace(day=day.day + 1)
"""


class Shell:
    """Runs ``taskq`` in a folder that holds the module ``shop``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(APP.replace("{folder}", str(folder)))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
        self.environment |= {"TASKQ_APP": "shop:app", "XDG_STATE_HOME": str(folder / "state")}

    def __call__(self, *arguments: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "taskq", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def app(self) -> TaskQ:
        """An app on the same broker, without tasks."""
        return TaskQ("other", broker=f"sqlite:///{self.folder}/shop.db")

    def json(self, *arguments: str, **environment: str) -> Any:
        """What a command that must succeed prints with --json."""
        ended = self(*arguments, "--json", **environment)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == ""
        return json.loads(ended.stdout)


@pytest.fixture
def taskq(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def queue_row(queue: str, **fields: Any) -> dict[str, Any]:
    row = {"queue": queue, "ready": 0, "held": 0, "delayed": 0, "oldest": None, "consumers": 0, "dead": 0, "paused": False}
    return {**row, **fields}


def columns(ended: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The cells of a table."""
    return [re.split(r"  +", line.rstrip()) for line in ended.stdout.splitlines()]


def depths(taskq: Shell) -> dict[str, tuple[int | None, int | None]]:
    return {row["queue"]: (row["ready"], row["dead"]) for row in taskq.json("queues")}


def test_a_sent_call_waits_in_its_tasks_queue(taskq: Shell) -> None:
    sent = taskq("send", "shop.add", "--args", "[1, 2]")
    assert sent.returncode == 0, sent.stderr
    assert len(sent.stdout.strip()) == 36
    assert taskq.json("send", "shop.add", "--kwargs", '{"a": 1}', "--task-id", "mine") == {"id": "mine", "task": "shop.add"}
    taskq.json("send", "shop.add", "--args", "[1]", "--queue", "slow")
    assert depths(taskq)["mail"][0] == 2
    assert taskq.json("queues", "slow")[0]["ready"] == 1


def test_arguments_are_checked_against_the_task(taskq: Shell) -> None:
    ended = taskq("send", "shop.add", "--args", "[1, 2, 3]")
    assert ended.returncode == 2
    assert "shop.add(): too many positional arguments" in ended.stderr


def test_a_task_that_the_app_does_not_know_is_sent_with_a_warning(taskq: Shell) -> None:
    ended = taskq("send", "shop.ad")
    assert ended.returncode == 0
    assert ended.stderr == "Warning: sent although shop has no task 'shop.ad'; did you mean 'shop.add'?\n"
    assert depths(taskq)["default"][0] == 1


def test_without_an_app_the_environment_names_the_broker(taskq: Shell) -> None:
    del taskq.environment["TASKQ_APP"]
    taskq.json("send", "any.task")
    taskq.json("send", "any.task", TASKQ_BROKER=f"sqlite:///{taskq.folder}/other.db")
    assert (taskq.folder / "state" / "taskq" / "taskq.db").exists()
    assert depths(taskq)["default"][0] == 1
    other = f"sqlite:///{taskq.folder}/other.db"
    (row,) = taskq.json("queues", "--broker", other)
    assert row == queue_row("default", ready=1, oldest=row["oldest"])


def test_queues_in_columns(taskq: Shell) -> None:
    taskq.json("send", "shop.add", "--args", "[1]")
    taskq.json("send", "shop.add", "--args", "[1]", "--countdown", "60")
    header, *rows = columns(taskq("queues", "mail", "nowhere"))
    assert header == ["queue", "ready", "held", "delayed", "oldest", "consumers", "dead", "paused"]
    age = rows[0][4]
    assert re.fullmatch(r"[\d.]+ m?s", age)
    assert rows == [["mail", "1", "0", "1", age, "0", "0"], ["nowhere", *"------"]]
    assert taskq("pause", "mail").stdout == "paused: mail\n"
    assert columns(taskq("queues", "mail"))[1][-2:] == ["0", "yes"]
    (row,) = taskq.json("queues", "mail")
    assert row == queue_row("mail", ready=1, delayed=1, oldest=row["oldest"], paused=True)
    assert 0 < row["oldest"] < 60
    assert taskq.json("resume", "mail") == {"resumed": ["mail"]}
    assert taskq.json("queues", "mail")[0]["paused"] is False


def test_a_queue_that_does_not_exist_can_be_paused_with_a_warning(taskq: Shell) -> None:
    ended = taskq("pause", "nowhere")
    assert (ended.returncode, ended.stdout) == (0, "paused: nowhere\n")
    assert ended.stderr.startswith("Warning: there is no queue 'nowhere' on sqlite:///")


def test_revoked_tasks_are_kept_for_every_worker(taskq: Shell) -> None:
    assert taskq("revoke", "one", "two").stdout == "revoked: one\nrevoked: two\n"
    assert taskq.json("revoke", "two", "--terminate") == {"revoked": ["two"], "terminate": True}
    kept = [entry for entry in taskq.app().publisher.controls() if isinstance(entry, Revoke)]
    assert {(entry.id, entry.terminate) for entry in kept} == {("one", False), ("two", True)}


def bury(taskq: Shell, *ids: str, reason: str = "crashed", at: float = 0.0) -> None:
    """Dead letters of ``shop.add``, as workers make them."""
    headers = {"lang": "py", "task": "shop.add", "retries": 0, "tq-crashes": 3, "tq-dead-traceback": "Traceback:\n  Boom"}
    about = {"tq-dead-reason": reason, "tq-dead-at": at or time.time(), "tq-dead-signal": "SIGSEGV"}
    letters = [Message(headers={**headers, **about, "id": task_id}, body=b"[[1, 2], {}, {}]") for task_id in ids]
    app = taskq.app()
    app.publisher.publish([Publication("mail.dead", letter) for letter in letters])
    app.close()


def test_dead_letters_in_columns_and_in_full(taskq: Shell) -> None:
    bury(taskq, "old", at=1.0)
    bury(taskq, "new", reason="time limit")
    header, *rows = [line.split() for line in taskq("dead", "list").stdout.splitlines()]
    assert header == ["id", "queue", "task", "reason", "retries", "crashes", "last_at"]
    assert [row[:4] for row in rows] == [["old", "mail", "shop.add", "crashed"], ["new", "mail", "shop.add", "time"]]
    assert [row["id"] for row in taskq.json("dead", "list", "mail.dead", "--since", "1h")] == ["new"]
    (shown,) = taskq.json("dead", "show", "--id", "old")
    assert (shown["last_at"], shown["crashes"], shown["args"]) == ("1970-01-01T00:00:01+00:00", 3, [1, 2])
    page = taskq("dead", "show", "mail", "--reason", "crashed").stdout
    assert "signal      SIGSEGV\n" in page
    assert "traceback\n    Traceback:\n      Boom\n" in page


def test_dead_letters_are_replayed(taskq: Shell) -> None:
    bury(taskq, "one", "two", "three")
    assert taskq("dead", "replay", "--dry-run").stdout == "dead letters that would be sent again: 3\n"
    assert depths(taskq)["mail"] == (None, 3)
    assert taskq.json("dead", "replay", "--id", "one", "--id", "two", "--rate", "100") == {"replayed": 2, "dry_run": False}
    assert depths(taskq)["mail"] == (2, 1)
    assert taskq("dead", "replay", "mail", "--task", "shop.add").stdout == "dead letters sent again: 1\n"
    assert depths(taskq)["mail"] == (3, 0)


def test_purging_dead_letters_asks_first(taskq: Shell) -> None:
    bury(taskq, "one", "two")
    refused = taskq("dead", "purge", "mail", answer="n\n")
    assert refused.returncode == 1
    assert "Delete the dead letters (2) on sqlite:///" in refused.stderr
    assert taskq.json("dead", "purge", "--dry-run") == {"purged": 2, "dry_run": True}
    assert depths(taskq)["mail"] == (None, 2)
    assert taskq("dead", "purge", "--id", "one", answer="y\n").stdout == "dead letters deleted: 1\n"
    assert taskq.json("dead", "purge", "mail", "--yes") == {"purged": 1, "dry_run": False}
    assert depths(taskq)["mail"] == (None, 0)


@pytest.mark.parametrize("command", [["list"], ["show"], ["replay"], ["purge", "--yes"]])
def test_letters_that_are_not_there(taskq: Shell, command: list[str]) -> None:
    nothing = taskq("dead", *command)
    assert (nothing.returncode, nothing.stderr) == (0, "")
    lost = taskq("dead", *command, "--id", "lost")
    assert lost.returncode == 1
    assert lost.stderr.startswith("Error: no dead letter of lost on sqlite:///")
    nowhere = taskq("dead", *command, "nowhere")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert nowhere.stderr.startswith("Error: there is no queue 'nowhere.dead' on sqlite:///")


def test_a_list_of_dead_letters_does_not_wait_for_the_last_one(taskq: Shell) -> None:
    bury(taskq, *map(str, range(3000)))
    command = f"{sys.executable} -m taskq dead list | head -1"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=taskq.folder, env=taskq.environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert (ended.stdout.split()[0], ended.stderr) == ("id", "")


def test_purge_asks_first(taskq: Shell) -> None:
    taskq.json("send", "shop.add", "--args", "[1]")
    refused = taskq("purge", "mail", answer="n\n")
    assert refused.returncode == 1
    assert "Delete the ready messages (1) of queue 'mail'" in refused.stderr
    assert depths(taskq)["mail"][0] == 1
    assert taskq("purge", "mail", answer="y\n").stdout == "messages deleted from queue 'mail': 1\n"
    assert depths(taskq)["mail"][0] == 0


def test_purge_with_yes_asks_nothing(taskq: Shell) -> None:
    taskq.json("send", "shop.add", "--args", "[1]")
    assert taskq.json("purge", "mail", "--yes") == {"queue": "mail", "purged": 1}


def test_purge_of_a_queue_that_does_not_exist(taskq: Shell) -> None:
    ended = taskq("purge", "nowhere", "--yes")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: there is no queue 'nowhere' on sqlite:///")


def test_config_shows_values_and_where_they_came_from(taskq: Shell) -> None:
    shown = taskq.json("config", "--prefetch", "5", TASKQ_HEARTBEAT="3")
    assert shown["grace"] == {"value": 7.0, "source": "keyword"}
    assert shown["prefetch"] == {"value": 5, "source": "command line"}
    assert shown["heartbeat"] == {"value": 3.0, "source": "environment"}
    assert shown["max_crashes"] == {"value": 3, "source": "default"}
    secret = taskq("config", TASKQ_BROKER="amqp://ann:secret@host//")
    assert "amqp://ann:***@host//" in secret.stdout
    assert "secret" not in secret.stdout + secret.stderr


def test_a_result_that_is_not_there(taskq: Shell) -> None:
    ended = taskq("result", "nothing")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: there is no result of task nothing:")
    waited = taskq("result", "nothing", "--timeout", "0.1")
    assert waited.returncode == 1
    assert waited.stderr == "Error: task nothing has not ended within 0.1 s; it may still end\n"


def test_a_broken_application_shows_its_own_traceback(taskq: Shell) -> None:
    (taskq.folder / "broken.py").write_text("import shop\nraise RuntimeError('no database')\n")
    ended = taskq("queues", "-A", "broken")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: the module 'broken' failed while it was imported:\n\nTraceback")
    assert ended.stderr.endswith("RuntimeError: no database\n")
    assert "taskq/cli" not in ended.stderr


def test_a_reader_that_goes_away_is_no_error_to_show(taskq: Shell) -> None:
    command = f"{sys.executable} -m taskq config --json | true"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=taskq.folder, env=taskq.environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr == ""


def test_ctrl_c_ends_a_wait_without_a_traceback(taskq: Shell) -> None:
    command = [sys.executable, "-m", "taskq", "send", "shop.add", "--args", "[1]", "--wait"]
    waiting = subprocess.Popen(
        command, cwd=taskq.folder, env=taskq.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: depths(taskq)["mail"][0] == 1, 30, "the call is sent")
    waiting.send_signal(signal.SIGINT)
    stdout, stderr = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert (stdout, stderr.strip()) == ("", "")


@pytest.fixture
def worker(taskq: Shell) -> Iterator[subprocess.Popen[str]]:
    """A worker of the app."""
    command = [sys.executable, "-m", "taskq", "worker", "-c", "1"]
    process = subprocess.Popen(command, cwd=taskq.folder, env=taskq.environment, stderr=subprocess.PIPE, text=True)
    yield process
    process.terminate()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log


@pytest.mark.usefixtures("worker")
def test_send_and_wait(taskq: Shell) -> None:
    added = taskq("send", "shop.add", "--args", "[1, 2]", "--wait", "--timeout", "30")
    assert (added.returncode, added.stdout, added.stderr) == (0, "3\n", "")
    marked = '[{"__type__": "date", "__value__": "2026-02-03"}]'
    assert taskq("send", "shop.tomorrow", "--args", marked, "--wait", "--timeout", "30").stdout == '"2026-02-04"\n'


@pytest.mark.usefixtures("worker")
def test_the_result_of_a_task_that_failed(taskq: Shell) -> None:
    task_id = taskq.json("send", "shop.add", "--args", '["a"]')["id"]
    failed = taskq("result", task_id, "--timeout", "30")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Traceback (most recent call last)" in failed.stderr
    assert f"Error: task {task_id} ended as FAILURE: TypeError:" in failed.stderr
    described = taskq("result", task_id, "--json")
    assert described.returncode == 1
    assert json.loads(described.stdout)["status"] == "FAILURE"
