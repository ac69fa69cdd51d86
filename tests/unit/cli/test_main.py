"""The command line's face: help, options, usage errors."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from taskq.cli.main import COMMANDS, cli
from taskq.config import NAMES

DEAD = [f"dead {name}" for name in ("list", "show", "replay", "purge")]
SCHEDULE = [f"schedule {name}" for name in ("list", "next", "run")]
GROUPS = {"dead": DEAD, "workflow": ["workflow show"], "schedule": SCHEDULE}
each_command = pytest.mark.parametrize("name", [one for name in COMMANDS for one in GROUPS.get(name, [name])])


def command(name: str) -> click.Command:
    found: click.Command | None = cli
    for word in name.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)
    assert found is not None
    return found


def options(name: str) -> set[str]:
    return {option for parameter in command(name).params for option in parameter.opts}


def test_help_is_what_one_gets_without_a_command() -> None:
    plain, asked = CliRunner().invoke(cli, []), CliRunner().invoke(cli, ["--help"])
    assert plain.output == asked.output
    assert asked.exit_code == 0
    assert re.findall(r"^  (\w+) {2,}\S", asked.output.partition("Commands:")[2], re.MULTILINE) == list(COMMANDS)


@each_command
def test_every_command_has_help_with_an_example_that_names_it(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"Examples?:\n(.*\n)* +(\w+=\w+ )?taskq {name}\b", shown.output)


@each_command
def test_every_command_but_the_demo_takes_the_app(name: str) -> None:
    assert ({"-A", "--app"} <= options(name)) == (name != "demo")


@pytest.mark.parametrize(
    "name",
    [
        *("send", "result", "workflow show", "queues", "purge", "config", "revoke", "pause", "resume", *DEAD, *SCHEDULE),
        *("status", "ps", "inspect", "scale", "shutdown"),
    ],
)
def test_commands_that_print_data_print_json(name: str) -> None:
    assert "--json" in options(name)


def test_dead_letters_are_chosen_in_the_same_way_whatever_is_done_with_them() -> None:
    group = command("dead")
    assert isinstance(group, click.Group)
    assert {f"dead {name}" for name in group.commands} == set(DEAD)
    for name in DEAD:
        assert {"--task", "--reason", "--since", "--id", "names"} <= options(name)


@pytest.mark.parametrize("name", ["worker", "config"])
def test_every_setting_is_an_option(name: str) -> None:
    assert {f"--{setting.replace('_', '-')}" for setting in NAMES} <= options(name)


@each_command
def test_no_option_of_a_command_means_two_things(name: str) -> None:
    given = [option for parameter in command(name).params for option in parameter.opts]
    assert len(given) == len(set(given))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrker"], "No such command 'wrker'"),
        (["worker"], "Missing option '-A' / '--app'"),
        (["worker", "-A", "shop", "-c", "many"], "'many' is not a valid integer"),
        (["worker", "-A", "shop", "--start-method", "thread"], "'thread' is not one of 'fork', 'spawn'"),
        (["worker", "-A", "shop", "--max-crash", "3"], "--max-crashes"),
        (["send"], "Missing argument 'NAME'"),
        (["send", "add", "--args", "[1"], "is not JSON: Expecting ',' delimiter: line 1 column 3 (char 2); write a list"),
        (["send", "add", "--args", '{"a": 1}'], "is JSON of another kind; write a list such as '[1, \"two\"]'"),
        (["send", "add", "--kwargs", "[1]"], "is JSON of another kind; write an object such as"),
        (["send", "add", "--priority", "10"], "10 is not in the range 0<=x<=9"),
        (["purge"], "Missing argument 'QUEUE'"),
        (["revoke"], "Missing argument 'ID...'"),
        (["pause"], "Missing argument 'QUEUE...'"),
        (["inspect"], "Missing argument '{ping|stats|"),
        (["inspect", "pong"], "'pong' is not one of 'ping', 'stats'"),
        (["scale"], "Missing argument 'N'"),
        (["scale", "0"], "0 is not in the range 1<=x<=1024"),
        (["status", "--watch", "--json"], "--watch is a screen for people"),
        (["ps", "-t", "0"], "it must be a number of seconds above 0, not 0.0"),
        (["dead", "lst"], "No such command 'lst'"),
        (["dead", "list", "--since", "yesterday"], "'yesterday' is no moment; write 2026-11-22T08:00, or 15m"),
        (["config", "--grace", "-1"], "grace must not be negative, not -1.0"),
        (["worker", "-A", "nowhere", "-c", "99999"], "concurrency must be 1024 at most, not 99999"),
        (["worker", "-A", "nowhere", "--http", "x"], "http must be host:port"),
        (["worker", "-A", "nowhere", "-b", "foo"], "broker='foo' is not a URL"),
        (["worker", "-A", "nowhere", "-Q", "mail.dead"], "rename yours"),
        (["dead", "replay", "--rate", "0"], "Invalid value for '--rate': 0 is not a number above 0"),
    ],
)
def test_wrong_usage_is_said_and_exits_2(arguments: list[str], message: str) -> None:
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({"TASKQ_BROKER": "ftp://:secret@h"}, ["queues"], "Error: broker='ftp://:***@h' is not a URL that taskq speaks"),
        ({"TASKQ_GRCE": "1"}, ["config"], "Error: unknown setting TASKQ_GRCE; did you mean 'grace'?"),
        ({"TASKQ_APP": "nowhere:app"}, ["queues"], "Error: there is no module 'nowhere'"),
        ({"TASKQ_GRACE": "-1"}, ["config"], "Error: grace must not be negative, not -1.0"),
    ],
)
def test_a_users_mistake_is_one_line_and_exits_1(environment: dict[str, str], arguments: list[str], message: str) -> None:
    ended = CliRunner().invoke(cli, arguments, env=environment)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1


def test_an_output_that_takes_no_more_is_said_and_exits_1() -> None:
    for argument in ("config", "--help"):
        command = [sys.executable, "-m", "taskq", argument]
        with open("/dev/full", "w", encoding="utf-8") as full:
            ended = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 1
        assert "No space left on device; the output is not complete" in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_python_m_taskq_is_the_same_and_help_imports_no_driver() -> None:
    code = """
import runpy, sys
sys.argv = ['anything', '--help']
try: runpy.run_module('taskq', run_name='__main__', alter_sys=True)
except SystemExit: print(*sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith("Usage: taskq [OPTIONS] COMMAND [ARGS]...")
    assert {"kombu", "amqp", "rich", "structlog", "asyncio", "taskq.workers"} & set(ended.stdout.split()) == set()


def test_a_worker_on_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    ended = CliRunner().invoke(cli, ["worker", "-A", "shop"])
    assert ended.exit_code == 1
    assert ended.stderr.startswith("Error: taskq worker needs Linux or macOS")


def test_the_version_is_that_of_the_distribution() -> None:
    assert re.fullmatch(r"taskq \d+\.\d+\.\d+\n", CliRunner().invoke(cli, ["--version"], prog_name="taskq").output)


def test_the_shell_completes_commands() -> None:
    code = "from taskq.__main__ import main; main()"
    environment = {"_TASKQ_COMPLETE": "bash_complete", "COMP_WORDS": "taskq pu", "COMP_CWORD": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "plain,purge\n"
