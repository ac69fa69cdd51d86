"""What an application or a task does to its process, beside signals: streams, sockets, users, programs, numbers of children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskq.errors import TaskFailed, TaskRevoked, TimeLimitExceeded
from tests.support import Stage, Worker, eventually

APP = "tests.apps.process:app"


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_default_timeout_of_sockets_ends_no_idle_child(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1", IMPORT="timeout") as worker:
        client = sqlite_stage.client()
        client.send_task("run").get(timeout=15)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 1.0)
        client.send_task("run").get(timeout=15)
        assert len({trace["pid"] for trace in sqlite_stage.traces("run")}) == 1
        assert worker.stop() == 0


def test_what_a_task_prints_is_seen_at_once(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        sqlite_stage.client().send_task("run", ["print"])
        eventually(lambda: "printed in a task\n" in worker.text, "the line is there while the task runs")


def test_what_the_import_prints_is_printed_once(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "3", IMPORT="print") as worker:
        sqlite_stage.client().send_task("run").get(timeout=15)
        assert worker.stop() == 0
        assert worker.text.count("printed at import") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_worker_without_standard_streams(sqlite_stage: Stage, closed: str) -> None:
    log = sqlite_stage.folder / "streams.log"
    text = f'exec "{sys.executable}" -m taskq worker -A {APP} -Q {sqlite_stage.queue} -c 1 {closed}'
    with Worker(["sh", "-c", text], sqlite_stage.environment(), log) as worker:
        client = sqlite_stage.client()
        assert client.send_task("run", ["print_closed"]).get(timeout=15) == "done"
        assert client.send_task("run", ["exit", True]).get(timeout=15) == "done"
        assert worker.stop() == 0
        assert "Traceback" not in worker.text


def test_the_import_has_closed_standard_output(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1", IMPORT="streams") as worker:
        assert sqlite_stage.client().send_task("run").get(timeout=15) == "done"
        assert worker.stop() == 0
        assert "Traceback" not in worker.text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_import_has_changed_the_working_directory(sqlite_stage: Stage, method: str) -> None:
    folder = sqlite_stage.folder / "code"
    folder.mkdir()
    (folder / "wanderer.py").write_text(
        'import os\nfrom taskq import TaskQ\napp = TaskQ("w")\nos.chdir("/")\n'
        '@app.task(name="run")\ndef run() -> str:\n    return os.getcwd()\n'
    )
    command = [sys.executable, "-m", "taskq", "worker", "-A", "wanderer:app", "-Q", sqlite_stage.queue, "-c", "1"]
    environment = sqlite_stage.environment(TASKQ_START_METHOD=method)
    with Worker(command, environment, sqlite_stage.folder / "w.log", folder) as worker:
        assert sqlite_stage.client().send_task("run").get(timeout=15) == "/"
        assert worker.stop() == 0


def test_files_beside_the_application_do_not_replace_what_taskq_imports(sqlite_stage: Stage) -> None:
    folder = sqlite_stage.folder / "code"
    folder.mkdir()
    for name in ("queue", "email", "amqp", "kombu", "select", "uuid", "signal", "types", "redis", "click"):
        (folder / f"{name}.py").write_text("raise RuntimeError('not this one')")
    (folder / "shop.py").write_text(
        'from taskq import TaskQ\napp = TaskQ("shop")\n'
        '@app.task(name="add")\ndef add(a: int, b: int) -> int:\n    return a + b\n'
    )
    program = shutil.which("taskq", path=os.path.dirname(sys.executable))
    assert program is not None
    for method in ("fork", "spawn"):
        command = [program, "worker", "-A", "shop", "-Q", sqlite_stage.queue, "-c", "1", "--start-method", method]
        with Worker(command, sqlite_stage.environment(), sqlite_stage.folder / f"{method}.log", folder) as worker:
            assert sqlite_stage.client().send_task("add", [1, 2]).get(timeout=60) == 3
            assert worker.stop() == 0
    sent = subprocess.run(
        [program, "send", "-A", "shop", "add", "--args", "[1, 2]"],
        cwd=folder,
        env=sqlite_stage.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert sent.returncode == 0, sent.stderr


def test_files_that_nobody_can_import_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / "queue.txt").touch()
    (tmp_path / "shop.py").write_text('from taskq import TaskQ\napp = TaskQ("shop")\n')
    program = "import sys; from taskq.cli.loading import load_app; load_app('shop'); print('kombu' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "False\n"


def test_hundreds_of_children(sqlite_stage: Stage) -> None:
    """More than the sockets between supervisor and zygote take, if each waits for the other."""
    with sqlite_stage.worker(APP, "-c", "300", TASKQ_LOG_LEVEL="debug") as worker:
        eventually(lambda: len(worker.logged("child_started")) == 300, "all of them are there", 60.0)
        assert worker.stop() == 0
        eventually(lambda: not worker.processes(), "nothing is left")


def test_more_children_than_files_may_be_open(sqlite_stage: Stage) -> None:
    text = f'ulimit -n 256 && exec "{sys.executable}" -m taskq worker -A {APP} -Q {sqlite_stage.queue} --log-format json -c '
    with Worker(["sh", "-c", text + "600"], sqlite_stage.environment(), sqlite_stage.folder / "refused.log") as worker:
        assert worker.wait() == 1
        assert "600 children need" in worker.text
        assert "Traceback" not in worker.text
    text = text.replace("ulimit -n 256", "ulimit -S -n 128")
    with Worker(["sh", "-c", text + "100"], sqlite_stage.environment(), sqlite_stage.folder / "raised.log") as worker:
        assert sqlite_stage.client().send_task("run").get(timeout=30) == "done"
        assert worker.stop() == 0


@pytest.mark.parametrize("how", ["user", "group"])
def test_a_task_that_has_become_another_user_dies_with_the_supervisor(sqlite_stage: Stage, how: str) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        sqlite_stage.client().send_task("run", [how])
        (running,) = sqlite_stage.traced("run")
        eventually(
            lambda: f"\t{os.getuid() or 65_534}\t" in Path(f"/proc/{running['pid']}/status").read_text(),
            "it has become another",
        )
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        eventually(lambda: not alive(running["pid"]), "no orphan works on", 5.0)


def test_programs_that_a_task_started_end_with_it(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        with pytest.raises(TimeLimitExceeded):
            client.send_task("limited").get(timeout=15)
        assert client.send_task("run", ["program_and_crash", True]).get(timeout=15) == "done"
        revoked = client.send_task("run", ["program_and_wait"])
        sqlite_stage.traced("program", 3)
        client.revoke(revoked.id, terminate=True)
        with pytest.raises(TaskRevoked):
            revoked.get(timeout=15)
        client.send_task("run", ["program_and_wait"])
        programs = [trace["program"] for trace in sqlite_stage.traced("program", 4)]
        eventually(lambda: [alive(program) for program in programs] == [False, False, False, True], "three have ended")
        worker.send(signal.SIGTERM)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert not alive(programs[3])


def test_a_program_in_a_session_of_its_own_goes_on(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        assert sqlite_stage.client().send_task("run", ["own_session", True]).get(timeout=15) == "done"
        (trace,) = sqlite_stage.traces("program")
        try:
            assert worker.stop() == 0
            assert alive(trace["program"])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(trace["program"], signal.SIGKILL)


def test_a_fork_that_fails_costs_its_slot_a_moment_and_nobody_else_anything(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "2", IMPORT="another_user") as worker:
        client = sqlite_stage.client()
        held = client.send_task("hold", ["key"])
        sqlite_stage.traced("hold")
        sqlite_stage.open_gate("full")
        again = client.send_task("run", ["exit", True])
        eventually(lambda: worker.logged("child_not_started"), "a fork has failed")
        (sqlite_stage.folder / "full").unlink()
        assert again.get(timeout=15) == "done"
        sqlite_stage.open_gate("gate")
        assert held.get(timeout=15) == "key"
        assert len(sqlite_stage.traces("hold")) == 1
        assert worker.logged("zygote_died") == []
        assert worker.stop() == 0


def test_a_zygote_that_is_stopped_is_replaced(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        again = client.send_task("run", ["stop_zygote", True])
        (stopped,) = sqlite_stage.traced("stopped")
        assert again.get(timeout=40) == "done"
        assert worker.logged("zygote_silent", pid=stopped["zygote"])
        assert [trace["crashes"] for trace in sqlite_stage.traces("run")] == [0, 1]
        assert not alive(stopped["zygote"])
        assert worker.stop() == 0


def test_a_child_that_garbles_its_pipe_is_broken(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        with pytest.raises(TaskFailed, match="crashed"):
            client.send_task("run", ["garble"]).get(timeout=15)
        assert client.send_task("whose", [1]).get(timeout=15) == 1
        assert worker.stop() == 0
