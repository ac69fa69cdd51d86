"""Workers are looked at and steered from a shell, on both brokers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from typing import Any

from click.testing import CliRunner, Result

from taskq.broker import open_caller
from taskq.cli.main import cli
from tests.servers import RabbitMQ
from tests.support import ROOT, Stage, eventually

BASIC = "tests.apps.basic:app"


class Shell:
    """Runs ``taskq`` on the stage's broker. Only where ``nodes`` are named is it known on RabbitMQ that all have answered."""

    def __init__(self, stage: Stage, *nodes: str) -> None:
        self.environment = {name: value for name, value in stage.environment().items() if name.startswith("TASKQ_")}
        self.nodes = [part for node in nodes for part in ("-d", node)]
        self.timeout = ["-t", "10" if nodes or stage.broker.startswith("sqlite:") else "2"]

    def __call__(self, *arguments: str, answer: str = "") -> Result:
        own = [*([] if "-d" in arguments else self.nodes), *([] if "-t" in arguments else self.timeout)]
        return CliRunner().invoke(cli, [*arguments, *own], env=self.environment, input=answer)

    def json(self, *arguments: str) -> Any:
        """What a command that must succeed prints with --json."""
        ended = self(*arguments, "--json")
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)


def test_each_command_with_one_worker(stage: Stage) -> None:
    with stage.worker(BASIC, "-c", "1") as worker:
        node, client = stage.name_of(worker), stage.client()
        taskq = Shell(stage, node)
        done = client.send_task("mark", ["key"])
        done.get(timeout=15)
        running = client.send_task("hold", ["secret", "gate"])
        stage.traced("hold")

        whole = taskq.json("status")
        about = whole["workers"][node]
        assert (about["app"], about["pid"], about["state"], about["queues"]) == (
            "basic",
            worker.pid,
            "consuming",
            [stage.queue],
        )
        assert (about["finished"], about["reserved"], about["paused"], about["events"]) == (1, 0, [], False)
        [child] = about["children"]
        assert (child["pid"], child["state"]) == (stage.traces("hold")[0]["pid"], "running")
        assert {name: child["task"][name] for name in ("id", "name", "queue")} == {
            "id": running.id,
            "name": "hold",
            "queue": stage.queue,
        }
        assert 0.0 < child["task"]["seconds"] < 15.0
        about = {"queue": stage.queue, "ready": 0, "oldest": None, "dead": 0, "workers": 1, "paused": False}
        assert [row | {"held": 1} for row in whole["queues"]] == [about | {"held": 1}]

        page = taskq("status").output
        assert re.search(rf"{node} +basic +consuming +\S+ +1 +1 +0 +1 +\d", page)
        assert re.search(rf"hold +{running.id} +{stage.queue} +\S+ +{child['pid']} +{node}", page)
        assert re.search(rf"{stage.queue} +0 +\S+ +- +0 +1", page)
        [task] = taskq.json("ps")
        assert (task["worker"], task["id"], task["pid"]) == (node, running.id, child["pid"])
        assert running.id in taskq("ps").output

        assert taskq.json("inspect", "ping") == {node: {"ok": "pong"}}
        assert taskq("inspect", "ping", "-d", node).output == f"{node}:\n    pong\n"
        assert [task["id"] for task in taskq.json("inspect", "active")[node]] == [running.id]
        assert taskq("inspect", "reserved").output == f"{node}:\n    none\n"
        assert "hold" in taskq("inspect", "registered").output.split()
        assert taskq.json("inspect", "stats")[node]["total"] == {"mark": 1}
        assert taskq.json("inspect", "conf")[node]["grace"] == 25.0
        assert "secret" not in page + taskq("inspect", "active").output

        assert taskq("shutdown", "-d", "taskq@nobody", "-t", "0.1", "--yes").exit_code == 1
        declined = taskq("shutdown", answer="n\n")
        assert (declined.exit_code, node in declined.stderr) == (1, True)
        assert taskq("shutdown", "--yes").output == f"{node}: shutting down\n"
        eventually(lambda: worker.logged("worker_stopping"), "it begins to stop")
        assert taskq.json("status")["workers"][node]["state"] == "draining"
        # To say it twice hurries nobody: that is for a second SIGTERM.
        assert taskq("shutdown", "--yes").exit_code == 0
        stage.open_gate("gate")
        assert running.get(timeout=15) == "secret"
        assert worker.wait() == 0
    nobody = Shell(stage)("status", "-t", "0.2")
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert re.fullmatch(r"Error: no worker answers on \S+ within 0.2 s\n", nobody.stderr)


def test_three_workers_and_a_command_for_one(stage: Stage) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(stage.worker(BASIC, "-c", "1")) for _ in range(3)]
        names = [stage.name_of(worker) for worker in workers]
        taskq = Shell(stage)
        whole = taskq.json("status", "-A", BASIC)
        assert list(whole["workers"]) == sorted(names)
        assert whole["queues"][0]["workers"] == 3
        other = taskq("status", "-A", "tests.apps.trouble:app", "-t", "0.3")
        assert (other.exit_code, other.stderr.startswith("Error: no worker of trouble answers on ")) == (1, True)
        assert taskq("shutdown", "-d", names[1], "--yes").exit_code == 0
        assert workers[1].wait() == 0
        # Whoever is killed is missed, and holds up nobody.
        workers[0].send(signal.SIGKILL)
        workers[0].wait()
        assert taskq.json("inspect", "ping") == {names[2]: {"ok": "pong"}}
        assert workers[2].stop() == 0


def test_arguments_are_shown_where_the_worker_says_so(sqlite_stage: Stage) -> None:
    taskq = Shell(sqlite_stage)
    with sqlite_stage.worker(BASIC, "--show-arguments") as worker:
        sqlite_stage.name_of(worker)
        sqlite_stage.client().send_task("hold", ["open", "gate"])
        sqlite_stage.client().send_task("hold", ["hidden", "gate"], headers={"argsrepr": "('***',)"})
        sqlite_stage.traced("hold", 2)
        assert sorted(task["args"] for task in taskq.json("ps")) == ["('***',)", "['open', 'gate']"]
        assert "['open', 'gate'] {}" in taskq("ps").output
        sqlite_stage.open_gate("gate")
        assert worker.stop() == 0


def test_a_worker_may_be_told_not_to_listen(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(BASIC, "--no-remote-control") as worker:
        worker.started()
        assert Shell(sqlite_stage)("status", "-t", "0.3").exit_code == 1
        assert worker.stop() == 0


def test_a_live_screen(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(BASIC) as worker:
        node = sqlite_stage.name_of(worker)
        command = [sys.executable, "-m", "taskq", "status", "--watch", "--interval", "0.2"]
        environment = {**os.environ, **Shell(sqlite_stage).environment, "COLUMNS": "200", "TERM": "xterm"}
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        screen = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs)
        seen = b""

        def shows(*texts: str) -> bool:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(ours, 65536)
            return all(text.encode() in seen for text in texts)

        try:
            eventually(lambda: shows(node, sqlite_stage.queue, "consuming"), "the worker is on the screen")
            running = sqlite_stage.client().send_task("hold", ["key", "gate"])
            eventually(lambda: shows(running.id), "and what it runs")
            screen.send_signal(signal.SIGINT)
            assert screen.wait(10.0) == 130
        finally:
            screen.kill()
            screen.wait()
            os.close(ours)
            os.close(theirs)
        sqlite_stage.open_gate("gate")
    assert Shell(sqlite_stage)("status", "--watch").exit_code == 2


def test_a_worker_is_heard_again_after_the_broker_was_away(killable_stage: Stage, killable_rabbitmq: RabbitMQ) -> None:
    stage, node = killable_stage, killable_rabbitmq
    with stage.worker(BASIC, "--events") as worker:
        name = stage.name_of(worker)
        with open_caller(stage.effective()) as caller:
            assert caller.ask("ping", nodes=[name], timeout=5.0) == {name: {"ok": "pong"}}
        node.sync()
        node.kill()
        eventually(lambda: worker.logged("remote_control_lost"), "the worker notices")
        assert Shell(stage)("status").exit_code == 1
        node.start()
        eventually(lambda: worker.logged("remote_control_restored"), "the worker is heard", 30.0)
        with open_caller(stage.effective()) as caller:
            assert caller.ask("ping", nodes=[name], timeout=5.0) == {name: {"ok": "pong"}}
            assert eventually(lambda: caller.ask("status", nodes=[name], timeout=5.0)[name]["state"] == "consuming")
        assert len(worker.logged("remote_control_lost")) == 1
        assert worker.stop() == 0


def test_a_worker_is_heard_again_after_its_pipe_was_removed(sqlite_stage: Stage) -> None:
    taskq = Shell(sqlite_stage)
    with sqlite_stage.worker(BASIC) as worker:
        name = sqlite_stage.name_of(worker)
        assert taskq.json("inspect", "ping") == {name: {"ok": "pong"}}
        for pipe in sqlite_stage.folder.glob("*.live/*"):
            pipe.unlink()
        eventually(lambda: worker.logged("remote_control_restored"), "it has made itself a new one")
        assert taskq.json("inspect", "ping") == {name: {"ok": "pong"}}
        assert worker.stop() == 0
