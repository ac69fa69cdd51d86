"""SIGHUP: the new code takes over, whatever else happens, and no task notices."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.integration.shop import Shop, children_of
from tests.proxy import Proxy
from tests.servers import RabbitMQ
from tests.support import ROOT, Stage, Worker, eventually
from tests.systemd import Systemd


@pytest.fixture
def shop(sqlite_stage: Stage) -> Shop:
    """The first version of a shop."""
    shop = Shop(sqlite_stage)
    shop.write(1)
    return shop


def bought(shop: Shop, key: str = "probe") -> int:
    """The version of the code that runs a task which is sent now."""
    version: int = shop.stage.client().send_task("buy", [key]).get(timeout=15)
    return version


def reloaded(worker: Worker, count: int = 1) -> None:
    """Wait for so many reloads that succeeded."""
    eventually(lambda: len(worker.logged("reloaded")) >= count or worker.logged("reload_failed"), f"{count} reloads")
    assert worker.logged("reload_failed") == []


def refused(worker: Worker, count: int = 1) -> str:
    """Wait for so many reloads that failed; returns why the last one did."""
    eventually(lambda: len(worker.logged("reload_failed")) >= count, f"{count} reloads fail")
    why: str = worker.logged("reload_failed")[-1]["why"]
    return why


def in_peace(worker: Worker) -> None:
    """The worker ends as told, leaves no process, and nothing has crashed."""
    assert worker.stop() == 0
    eventually(lambda: not worker.processes(), "no process is left")
    assert worker.logged("task_crashed") == []
    assert "Traceback" not in worker.text


def test_new_tasks_run_the_new_code_while_an_old_one_finishes(shop: Shop) -> None:
    with shop.worker() as worker:
        held = shop.stage.client().send_task("hold", ["long", "gate"])
        (holding,) = shop.stage.traced("hold")
        shop.write(2)
        worker.send(signal.SIGHUP)
        reloaded(worker)
        assert bought(shop) == 2
        (line,) = worker.logged("reloaded")
        assert line["finishing"] == 1
        assert 0 < line["seconds"] < 10
        assert worker.logged("old_code_gone") == [], "children die with their zygote"
        shop.stage.open_gate("gate")
        assert held.get(timeout=15) == 1
        eventually(lambda: worker.logged("old_code_gone"), "the old zygote ends after its last child")
        assert holding["pid"] not in worker.processes()
        assert len(shop.stage.traces("hold")) == 1
        in_peace(worker)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_one_reload_after_the_other_while_a_task_holds_the_first_code(shop: Shop, start_method: str) -> None:
    with shop.worker("--start-method", start_method) as worker:
        held = shop.stage.client().send_task("hold", ["long", "gate"])
        shop.stage.traced("hold")
        for version in (2, 3, 4):
            shop.write(version)
            worker.send(signal.SIGHUP)
            reloaded(worker, version - 1)
            assert bought(shop, str(version)) == version
        eventually(lambda: len(worker.logged("old_code_gone")) == 2, "the zygotes without children end")
        assert len(children_of(worker.pid)) == 2
        shop.stage.open_gate("gate")
        assert held.get(timeout=15) == 1
        in_peace(worker)


def test_code_that_does_not_import_changes_nothing(shop: Shop) -> None:
    with shop.worker() as worker:
        assert bought(shop, "before") == 1
        shop.save("def half_a_functi")
        worker.send(signal.SIGHUP)
        assert "SyntaxError" in refused(worker)
        shop.save("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
        worker.send(signal.SIGHUP)
        assert "died of SIGKILL" in refused(worker, 2)
        assert bought(shop, "after") == 1
        shop.write(2)
        worker.send(signal.SIGHUP)
        eventually(lambda: worker.logged("reloaded"), "it recovers")
        assert bought(shop, "at last") == 2
        in_peace(worker)


def test_a_task_of_which_messages_are_here_must_not_disappear(shop: Shop) -> None:
    with shop.worker() as worker:
        held = shop.stage.client().send_task("hold", ["long", "gate"])
        shop.stage.traced("hold")
        shop.write(2, less="hold")
        worker.send(signal.SIGHUP)
        assert "the new code lacks hold" in refused(worker)
        shop.stage.open_gate("gate")
        assert held.get(timeout=15) == 1
        worker.send(signal.SIGHUP)
        assert "a few minutes ago" in refused(worker, 2), "it ran just now"
        assert bought(shop) == 1
        in_peace(worker)


def test_a_task_that_nobody_uses_may_disappear(shop: Shop) -> None:
    with shop.worker().started() as worker:
        shop.write(2, less="hold")
        worker.send(signal.SIGHUP)
        reloaded(worker)
        assert bought(shop) == 2
        assert worker.logged("reloaded", tasks=1)
        in_peace(worker)


def test_settings_follow_the_code_or_are_refused(shop: Shop) -> None:
    with shop.worker().started() as worker:
        shop.write(2, "heartbeat=3")
        worker.send(signal.SIGHUP)
        assert "heartbeat" in refused(worker)
        shop.write(3, "soft_time_limit=0.1, max_tasks_per_child=1")
        worker.send(signal.SIGHUP)
        eventually(lambda: worker.logged("reloaded"), "what can be taken over is")
        with pytest.raises(Exception, match="soft time limit"):
            shop.stage.client().send_task("buy", ["slow", 5.0]).get(timeout=15)
        assert len({shop.stage.client().send_task("buy", [key]).get(timeout=15) for key in "abc"}) == 1
        processes = [trace["pid"] for trace in shop.stage.traces("began")]
        assert len(processes) == len(set(processes)), "each child runs one task"
        assert worker.stop() == 0


def test_several_at_once_end_with_what_was_saved_last(shop: Shop) -> None:
    with shop.worker().started() as worker:
        for version in range(2, 7):
            shop.write(version)
            worker.send(signal.SIGHUP)
        eventually(lambda: bought(shop) == 6, "the last version runs")
        assert worker.logged("reload_failed") == []
        eventually(lambda: len(children_of(worker.pid)) == 1, "one zygote is left")
        in_peace(worker)


def test_none_while_the_worker_stops(shop: Shop) -> None:
    with shop.worker() as worker:
        held = shop.stage.client().send_task("hold", ["long", "gate"])
        shop.stage.traced("hold")
        worker.send(signal.SIGTERM)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        worker.send(signal.SIGHUP)
        assert "stopping" in refused(worker)
        shop.stage.open_gate("gate")
        assert worker.wait() == 0
        assert held.get(timeout=5) == 1


def test_a_stop_gives_up_an_import_that_is_under_way(shop: Shop) -> None:
    with shop.worker().started() as worker:
        shop.save("import time\ntime.sleep(60)\n")
        worker.send(signal.SIGHUP)
        eventually(lambda: worker.logged("reload_started"), "the import begins")
        in_peace(worker)


def test_a_zygote_that_is_killed_while_its_successor_imports(shop: Shop) -> None:
    with shop.worker().started() as worker:
        (old,) = children_of(worker.pid)
        shop.write(2, more='pass_gate("import")\n')
        worker.send(signal.SIGHUP)
        eventually(lambda: len(children_of(worker.pid)) == 2, "another zygote imports")
        os.kill(old, signal.SIGKILL)
        eventually(lambda: worker.logged("zygote_died"), "the worker notices")
        shop.stage.open_gate("import")
        assert bought(shop) == 2
        reloaded(worker)
        in_peace(worker)


def test_a_successor_that_is_killed_while_it_imports(shop: Shop) -> None:
    with shop.worker().started() as worker:
        (old,) = children_of(worker.pid)
        shop.write(2, more='pass_gate("import")\n')
        worker.send(signal.SIGHUP)
        eventually(lambda: len(children_of(worker.pid)) == 2, "another zygote imports")
        (new,) = set(children_of(worker.pid)) - {old}
        os.kill(new, signal.SIGKILL)
        assert "died of SIGKILL" in refused(worker)
        assert bought(shop) == 1
        in_peace(worker)


def test_an_old_zygote_that_is_killed_takes_only_its_own_children_along(shop: Shop) -> None:
    with shop.worker() as worker:
        held = shop.stage.client().send_task("hold", ["long", "gate"])
        shop.stage.traced("hold")
        (old,) = children_of(worker.pid)
        shop.write(2)
        worker.send(signal.SIGHUP)
        reloaded(worker)
        (_, new) = sorted(children_of(worker.pid), key=lambda process: process != old)
        os.kill(old, signal.SIGKILL)
        assert len(shop.stage.traced("hold", 2)) == 2, "what ran there runs again"
        shop.stage.open_gate("gate")
        assert held.get(timeout=15) == 2
        assert children_of(worker.pid) == [new]
        assert worker.stop() == 0


def test_a_zygote_that_dies_later_is_replaced_by_one_with_the_code_on_the_disk(shop: Shop) -> None:
    with shop.worker().started() as worker:
        shop.write(2, "heartbeat=3")
        (old,) = children_of(worker.pid)
        os.kill(old, signal.SIGKILL)
        eventually(lambda: worker.logged("code_changed"), "the worker says that it is not fit for it")
        assert bought(shop) == 2
        assert worker.stop() == 0


def test_systemd_is_told(shop: Shop) -> None:
    with Systemd(shop.stage.folder) as systemd:
        heard: list[str] = []

        def said(words: int) -> bool:
            heard.extend(word.partition("\n")[0] for word in systemd.heard() if not word.startswith("STATUS="))
            return len(heard) >= words

        with shop.worker(NOTIFY_SOCKET=systemd.address) as worker:
            eventually(lambda: said(1), "it is ready")
            worker.send(signal.SIGHUP)
            eventually(lambda: said(3), "it has reloaded")
            shop.save("def half_a_functi")
            worker.send(signal.SIGHUP)
            eventually(lambda: said(5), "it has not reloaded")
            assert worker.stop() == 0
            eventually(lambda: said(6), "it ends")
        assert heard == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


@pytest.fixture
def proxy(rabbitmq: RabbitMQ) -> Iterator[Proxy]:
    with Proxy(rabbitmq.port) as proxy:
        yield proxy


def test_the_broker_is_not_needed(amqp_stage: Stage, proxy: Proxy) -> None:
    shop = Shop(amqp_stage)
    shop.write(1)
    broker = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    with shop.worker("--heartbeat", "1", TASKQ_BROKER=broker) as worker:
        assert bought(shop, "before") == 1
        proxy.stall()
        proxy.cut()
        eventually(lambda: worker.logged("broker_lost"), "the worker notices")
        shop.write(2)
        worker.send(signal.SIGHUP)
        reloaded(worker)
        assert worker.logged("broker_connected") == []
        proxy.flow()
        assert bought(shop, "after") == 2
        in_peace(worker)


def test_schedules_follow_the_code(shop: Shop) -> None:
    with shop.worker().started() as worker:
        assert worker.logged("scheduler_started") == []
        more = 'from datetime import timedelta\n\napp.schedule("{0}", timedelta(seconds=1), buy.s("{0}"))\n'
        for count, name in enumerate(("early", "late"), 1):
            shop.write(1 + count, more=more.format(name))
            worker.send(signal.SIGHUP)
            reloaded(worker, count)
            shop.stage.traced("began", key=name, version=1 + count)
        before = len(shop.stage.traces("began", key="early"))
        shop.stage.traced("began", 3, key="late")
        assert len(shop.stage.traces("began", key="early")) == before
        in_peace(worker)


def test_a_link_to_the_current_release_is_followed(shop: Shop) -> None:
    folder = shop.stage.folder
    for version in (1, 2):
        shop.write(version)
        (folder / f"release-{version}").mkdir()
        shop.file.rename(folder / f"release-{version}" / "shop.py")
    current = folder / "current"
    current.symlink_to("release-1")
    command = [sys.executable, "-m", "taskq", "worker", "-A", "shop", "-Q", shop.stage.queue, "--log-format", "json", "-c", "2"]
    environment = shop.stage.environment(PWD=str(current), PYTHONPATH=str(ROOT))
    with Worker(command, environment, folder / "worker.log", current) as worker:
        assert bought(shop, "before") == 1
        (folder / "next").symlink_to("release-2")
        (folder / "next").rename(current)
        worker.send(signal.SIGHUP)
        reloaded(worker)
        assert bought(shop, "after") == 2
        in_peace(worker)
