"""The units under a real systemd, set up by what docs/deployment/systemd.md tells a person to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import kombu
import pytest

from taskq import AsyncResult, TaskQ
from taskq.message import dead_letter_queue
from tests.machine import PYTHON, Systemd, install_application, running_systemd
from tests.pages import Page
from tests.redis_server import Redis
from tests.servers import RabbitMQ
from tests.support import ROOT, eventually

pytestmark = pytest.mark.namespaces

UNITS = ROOT / "deploy" / "systemd"
WORKER, MAIL, SCHEDULER = "taskq-worker@shop", "taskq-worker@shop-mail", "taskq-scheduler"
#: A task that looks around, beside those of the page.
LOOK = """

@app.task(name="look")
def look() -> dict:
    import os, pathlib, tempfile
    def writable(folder):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            return False
        return True
    folders = ["/", "/etc", "/srv/shop", "/var/lib", "/var/lib/taskq", "/tmp", "/home", "/root"]
    hidden = not any(pathlib.Path("/root").iterdir()) if os.access("/root", os.R_OK) else True
    return {"user": os.getuid(), "writable": [f for f in folders if writable(f)], "hidden": hidden, "home": os.environ["HOME"]}


@app.task(name="hold")
def hold(key: str, seconds: float) -> str:
    import pathlib, time
    pathlib.Path("/var/lib/taskq", key).touch()
    time.sleep(seconds)
    return "held"
"""


class Machine:
    """A machine that was set up as the page says, and a client beside it."""

    def __init__(self, systemd: Systemd, client: TaskQ) -> None:
        self.systemd = systemd
        self.client = client

    def main_process(self, unit: str) -> int:
        """The process id of the unit's supervisor, inside."""
        return int(self.systemd.property(unit, "MainPID"))

    def hold(self, key: str, seconds: float) -> AsyncResult[str]:
        """A task that takes so long, once it has begun."""
        result: AsyncResult[str] = self.client.send_task("hold", [key, seconds])
        eventually(lambda: self.systemd.ask(f"ls /var/lib/taskq/{key}"), "the task has begun")
        return result

    def journal(self, unit: str) -> str:
        """What the unit has logged."""
        return self.systemd.ask(f"journalctl --no-pager --output cat -u {unit}")


@pytest.fixture(scope="module")
def machine(rabbitmq: RabbitMQ, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Set up by the page's commands, all of them, but for those that install packages and open an editor."""
    folder = tmp_path_factory.mktemp("systemd")
    page = Page("deployment/systemd.md")
    settings = {"TASKQ_BROKER": rabbitmq.url, "TASKQ_BACKEND": redis.url, "TASKQ_DEFAULT_QUEUE": "shop.test"}
    client = TaskQ("client", broker=rabbitmq.url, backend=redis.url, default_queue="shop.test")
    with running_systemd(folder) as systemd:
        for command in (line.replace("sudo ", "") for line in page.commands):
            if command.startswith("cp shop.py"):
                install_application(systemd, "shop", {"shop.py": page.file("shop.py") + LOOK})
            elif command.startswith("editor"):
                example = (UNITS / "shop.env").read_text()
                edited = re.sub(r"^TASKQ_(BROKER|BACKEND)=.*\n", "", example, flags=re.MULTILINE)
                own = {**settings, "LD_LIBRARY_PATH": f"{PYTHON}/lib"}
                lines = edited + "".join(f"{name}={value}\n" for name, value in own.items())
                systemd.run(f"printf %s {shlex.quote(lines)} >/etc/taskq/shop.env")
            elif "/.venv" not in command:
                systemd.run(f"cd {ROOT} && {command}")
        yield Machine(systemd, client)
    client.close()
    with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
        for queue in ("shop.test", "mail"):
            for name in (queue, dead_letter_queue(queue), f"{queue}.returned"):
                channel.queue_delete(name)


def test_the_units_are_valid_and_the_exposure_is_ok(machine: Machine) -> None:
    units = f"{UNITS}/taskq-worker@.service {UNITS}/taskq-scheduler.service"
    assert machine.systemd.run(f"systemd-analyze verify /etc/systemd/system/{WORKER}.service {SCHEDULER}.service 2>&1") == ""
    # Ten times the exposure: 5.0 and more would be MEDIUM.
    machine.systemd.run(f"systemd-analyze security --offline=true --threshold=49 {units}")


def test_the_workers_and_the_scheduler_run_and_are_enabled(machine: Machine) -> None:
    for unit in (WORKER, MAIL, SCHEDULER):
        assert machine.systemd.property(unit, "ActiveState") == "active", machine.journal(unit)
        assert machine.systemd.ask(f"systemctl is-enabled {unit}") == "enabled"
    assert machine.client.send_task("shop.add", [1, 2]).get(timeout=15) == 3
    assert "scheduler_started" in machine.journal(SCHEDULER)
    sent = machine.client.send_task("shop.send_mail", ["ann@example.org", "hello"], queue="mail")
    assert sent.get(timeout=15) == "sent 'hello' to ann@example.org"
    for unit in (WORKER, MAIL):
        assert "error" not in machine.journal(unit), machine.journal(unit)


def test_a_task_may_do_little_beside_its_work(machine: Machine) -> None:
    seen = machine.client.send_task("look").get(timeout=15)
    assert seen["user"] == int(machine.systemd.run("id -u taskq"))
    assert (seen["writable"], seen["hidden"], seen["home"]) == (["/var/lib/taskq", "/tmp"], True, "/var/lib/taskq")
    assert machine.systemd.run("stat --format '%U' /var/lib/taskq/workers").strip() == "taskq"


def test_a_worker_that_is_killed_is_started_again_and_its_task_runs(machine: Machine) -> None:
    result = machine.hold("killed", 1.0)
    before = machine.main_process(WORKER)
    machine.systemd.run(f"kill -KILL {before}")
    assert result.get(timeout=30) == "held"
    assert eventually(lambda: machine.main_process(WORKER), "it runs again") != before
    eventually(lambda: machine.systemd.property(WORKER, "ActiveState") == "active", "it is ready again")


def test_a_stop_waits_for_the_running_task_and_is_a_success(machine: Machine) -> None:
    result = machine.hold("stopped", 2.0)
    machine.systemd.run(f"systemctl stop {WORKER}")
    assert result.get(timeout=5) == "held"
    assert machine.systemd.property(WORKER, "Result") == "success"
    assert machine.systemd.property(WORKER, "ExecMainStatus") == "0"
    machine.systemd.run(f"systemctl start {WORKER}")
    assert machine.systemd.property(WORKER, "StatusText") != ""


def test_a_reload_brings_new_code_to_the_same_worker(machine: Machine) -> None:
    running = machine.hold("reloaded", 2.0)
    before = machine.main_process(WORKER)
    machine.systemd.run("sed -i 's/return a + b/return 10 * (a + b)/' /srv/shop/shop.py")
    machine.systemd.run(f"systemctl reload {WORKER}")
    eventually(lambda: machine.client.send_task("shop.add", [1, 2]).get(timeout=15) == 30, "the new code runs")
    assert running.get(timeout=15) == "held"
    eventually(lambda: machine.systemd.property(WORKER, "ActiveState") == "active", "it is ready again")
    assert machine.main_process(WORKER) == before
    assert "reloaded" in machine.journal(WORKER)


def test_a_mistake_that_is_mended_needs_no_start_by_hand(machine: Machine) -> None:
    unit = "taskq-worker@mended"
    machine.systemd.run("ln -s shop /srv/mended && sed s/GRACE=25/GRACE=soon/ /etc/taskq/shop.env >/etc/taskq/mended.env")
    assert "failed" in machine.systemd.ask(f"systemctl start {unit} 2>&1")
    assert "TASKQ_GRACE must be a number, not 'soon'" in machine.journal(unit)
    machine.systemd.run("cp /etc/taskq/shop.env /etc/taskq/mended.env")
    eventually(lambda: machine.systemd.property(unit, "ActiveState") == "active", "it runs by itself")
    machine.systemd.run(f"systemctl stop {unit}")


def test_wrong_usage_is_not_tried_again(machine: Machine) -> None:
    machine.systemd.run("ln -s shop /srv/wrong && sed /TASKQ_APP/d /etc/taskq/shop.env >/etc/taskq/wrong.env")
    assert "failed" in machine.systemd.ask("systemctl start taskq-worker@wrong 2>&1")
    names = ("ActiveState", "ExecMainStatus", "NRestarts")
    seen = [machine.systemd.property("taskq-worker@wrong", name) for name in names]
    assert seen == ["failed", "2", "0"], machine.journal("taskq-worker@wrong")


def test_the_watchdog_ends_a_worker_that_hangs(machine: Machine) -> None:
    machine.systemd.run(
        f"mkdir /etc/systemd/system/{MAIL}.service.d && "
        f"printf '[Service]\\nWatchdogSec=2\\n' >/etc/systemd/system/{MAIL}.service.d/quick.conf && "
        f"systemctl daemon-reload && systemctl restart {MAIL}"
    )
    before = machine.main_process(MAIL)
    machine.systemd.run(f"kill -STOP {before}")
    eventually(lambda: machine.main_process(MAIL) not in (0, before), "another one runs", 30.0)
    eventually(lambda: machine.systemd.property(MAIL, "ActiveState") == "active", "it is ready")
    assert "Watchdog timeout" in machine.journal(MAIL)
