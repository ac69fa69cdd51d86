"""Kind 5 on the command line: a mistake is a usage error (2) or a failure (1) in words, and no setting is ignored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from taskq import TaskQ
from taskq.cli.main import cli
from taskq.schedule import Schedule
from taskq.workers.scheduler import Scheduler, Timetable
from taskq.workers.scheduler_health import SchedulerHealth
from tests.support import eventually, json_lines

JUNK = ("", "-1", "0", "nan", "1e999", "[1]", "{", "\udc80", "x" * 5000, "9" * 5000, "*", "é\n")
APP = """
from datetime import timedelta
from taskq import TaskQ
app = TaskQ("silent_shop", broker="sqlite:///shop.db")
@app.task
def add(a, b): return a + b
app.schedule("often", timedelta(seconds=1), add.s(1, 2))
"""
#: Modules that are no application, by what they hold.
BAD_MODULES = {
    "silent_raises": "1 / 0",
    "silent_exits": "raise SystemExit(5)",
    "silent_syntax": "def (",
    "silent_base": "class Odd(BaseException): pass\nraise Odd('x')",
    "silent_odd": "class Odd(Exception):\n  def __str__(self): 1 / 0\nraise Odd",
    "silent_url": "from taskq import TaskQ\napp = TaskQ('x', broker='nope://')",
    "silent_bytes": "from taskq import TaskQ\napp = TaskQ(b'x')",
}
#: What would run, or wait, until it is told to end.
ENDLESS = {"demo", "worker", "scheduler"}
WAITS = {"wait", "watch"}


def commands(group: click.Group = cli, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        elif command is not None and name not in ENDLESS:
            yield (*before, name), command


COMMANDS = dict(commands())
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an application that works and others that do not."""
    for name, text in {"silent_shop": APP, **BAD_MODULES}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("silent_shop", *BAD_MODULES):
        sys.modules.pop(name, None)


def run(*arguments: str) -> Result:
    """The command ends as a command should, whatever it was told."""
    result = CliRunner().invoke(cli, list(arguments), input="n\n")
    assert result.exit_code in (0, 1, 2), (arguments, result.exit_code)
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    # A module that fails while it is imported is shown with its own traceback, from its own first frame on.
    assert "Traceback" not in result.output or "failed while it was imported" in result.output, (arguments, result.output)
    return result


def usual(words: tuple[str, ...]) -> list[str]:
    """The words of the command, with short waits for servers and workers."""
    options = {option for parameter in COMMANDS[words].params for option in parameter.opts}
    short = {"-t": "0.05", "--publish-timeout": "1"}
    return [*words, *(part for option, value in short.items() if option in options for part in (option, value))]


def needed(words: tuple[str, ...]) -> int:
    return sum(isinstance(parameter, click.Argument) for parameter in COMMANDS[words].params)


@each_command
def test_no_argument_makes_a_command_fail_without_words(words: tuple[str, ...]) -> None:
    for junk in JUNK:
        run(*usual(words), "-A", "silent_shop", "--", *[junk] * max(1, needed(words)))
    run(*usual(words), "-A", "silent_shop")


@each_command
def test_no_value_of_an_option_makes_a_command_fail_without_words(words: tuple[str, ...]) -> None:
    for parameter in COMMANDS[words].params:
        if not isinstance(parameter, click.Option) or parameter.name in WAITS:
            continue
        for junk in ("",) if parameter.is_flag else JUNK:
            value = [] if parameter.is_flag else [junk]
            run(*usual(words), "--broker", "sqlite:///shop.db", parameter.opts[-1], *value, *["x"] * needed(words))


@each_command
@pytest.mark.parametrize(
    "url",
    [
        *("x", "sqlite://", "sqlite:///silent_shop.py", "sqlite:////dev/null/x.db", "sqlite:////proc/x.db", "http://x"),
        *(
            "amqp://127.0.0.1:1//",
            "amqp://127.0.0.1:99999//",
            "amqp://127.0.0.1:abc//",
            "amqp://[bad/",
            f"sqlite:///{'x' * 300}",
        ),
    ],
)
def test_no_broker_makes_a_command_fail_without_words(words: tuple[str, ...], url: str) -> None:
    result = run(*usual(words), "--broker", url, *["x"] * needed(words))
    # Without an application there are no schedules, and nobody is asked about them.
    assert result.exit_code != 0 or words in {("config",), ("schedule", "list")}


@pytest.mark.parametrize("words", [("send",), ("doctor",), ("why",), ("schedule", "list")], ids=" ".join)
@pytest.mark.parametrize("spec", [*BAD_MODULES, "nowhere", "silent_shop:add", "silent_shop:nope", ":", "a:b:c", "x.py", "1"])
def test_no_application_makes_a_command_fail_without_words(words: tuple[str, ...], spec: str) -> None:
    assert run(*usual(words), "-A", spec, *["x"] * ("list" not in words and "doctor" not in words)).exit_code in (1, 2)


@pytest.mark.parametrize("arguments", ["[1]", "[]", "[1, 2, 3]"])
def test_a_call_that_the_task_does_not_take_is_wrong_usage(arguments: str) -> None:
    result = run("send", "-A", "silent_shop", "silent_shop.add", "--args", arguments)
    assert result.exit_code == 2
    assert "silent_shop.add(): " in result.stderr


@pytest.mark.parametrize("option", ["--countdown", "--expires", "--timeout"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e12", "x", ""])
def test_seconds_on_the_command_line_are_seconds(option: str, value: str) -> None:
    result = run("send", "-A", "silent_shop", "silent_shop.add", "--args", "[1, 2]", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_scheduler_answers_where_the_setting_http_says(folder: Path) -> None:
    log = folder / "log"
    environment = {**os.environ, "TASKQ_HTTP": "127.0.0.1:0", "TASKQ_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "taskq", "scheduler", "-A", "silent_shop"]
    with log.open("wb") as out, subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as process:
        try:
            url = eventually(lambda: [line["url"] for line in json_lines(log) if line.get("event") == "http_listening"])[0]
            eventually(lambda: get(f"{url}/readyz")[0] == 200, "ready")
            assert json.loads(get(f"{url}/livez")[1])["live"] is True
            eventually(lambda: "taskq_scheduler_leads 1.0" in get(f"{url}/metrics")[1], "it leads")
            eventually(lambda: "taskq_scheduler_ticks_total 0.0" not in get(f"{url}/metrics")[1], "a tick is sent")
            assert "taskq_scheduler_schedules 1.0" in get(f"{url}/metrics")[1]
            assert get(f"{url}/other")[0] == 404
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_a_scheduler_that_does_not_reach_its_servers_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    app = TaskQ("silent", broker="sqlite:////dev/null/x.db")
    app.schedule("often", "* * * * *", app.task(name="len")(len).s("x"))
    schedules: list[Schedule] = list(app.schedules.values())
    scheduler = Scheduler(app.name, Timetable(app.settings, schedules, {}), "worker")
    health = SchedulerHealth(scheduler)
    scheduler.start()
    eventually(lambda: scheduler._failing)
    assert [health.answer(path).status for path in ("/livez", "/readyz", "/metrics")] == [200, 503, 200]
    scheduler.stop()
    scheduler.turned_at -= 3600
    assert health.answer("/livez").status == health.answer("/readyz").status == 503


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("option", ["--grace", "--time-limit", "--soft-time-limit", "--result-ttl"])
def test_a_setting_that_is_no_number_is_wrong_usage_for_a_worker_too(option: str, value: str) -> None:
    for words in (["worker", "-A", "silent_shop"], ["config"]):
        result = run(*words, option, value)
        assert result.exit_code == 2
        assert f"Error: {option} must be a number, not {value}\n" in result.stderr
