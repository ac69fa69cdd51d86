"""Imports point one way."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture.source import Module, imports, modules

MESSAGING = {"amqp", "kombu", "vine"}


def importers(*names: str) -> set[str]:
    """The modules of taskq that import one of these packages or anything in them."""
    return {module.name for module in modules("taskq") if any(_is_in(name, names) for name in imports(module))}


def _is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def outside(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if not _is_in(name, packages)}


def test_only_the_broker_package_knows_kombu() -> None:
    assert importers(*MESSAGING), "the rule finds nobody: is it looking at the right files?"
    assert outside(importers(*MESSAGING), "taskq.broker") == set()


def test_only_a_backend_knows_its_driver() -> None:
    assert importers("psycopg"), "the rule finds nobody: is it looking at the right files?"
    assert outside(importers("psycopg"), "taskq.results.postgres") == set()
    assert outside(importers("redis"), "taskq.results.redis") == set()


def test_only_the_command_line_the_worker_and_the_tests_of_applications_know_the_workers_code() -> None:
    assert "taskq.cli.worker" in importers("taskq.workers")
    assert outside(importers("taskq.workers"), "taskq.cli", "taskq.testing", "taskq.workers") == set()


def test_nothing_that_runs_in_production_knows_what_is_for_tests() -> None:
    assert outside(importers("taskq.testing"), "taskq.testing") == {"taskq.pytest_plugin"}
    assert importers("pytest") == {"taskq.pytest_plugin"}
    assert importers("taskq.pytest_plugin") == set()


def test_only_the_command_line_knows_click_and_rich() -> None:
    assert outside(importers("click", "rich"), "taskq.cli") == set()


def test_only_the_log_knows_structlog() -> None:
    assert importers("structlog") == {"taskq.log"}


def test_only_the_metrics_know_prometheus() -> None:
    assert importers("prometheus_client") == {"taskq.workers.metrics", "taskq.workers.scheduler_health"}


def test_nothing_knows_celery_and_nothing_goes_by_the_name_workers() -> None:
    assert importers("celery", "billiard", "workers") == set()


def test_the_command_line_is_imported_by_nothing_but_itself_and_by_the_worker_to_find_the_app() -> None:
    using = {module.name: {name for name in imports(module) if _is_in(name, ("taskq.cli",))} for module in modules("taskq")}
    for name in outside({name for name, used in using.items() if used}, "taskq.cli", "taskq.__main__"):
        assert using[name] == {"taskq.cli.loading"}, name


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("taskq.describe", ("taskq",)),
        ("taskq.message", ("taskq",)),
        ("taskq.serialization", ("taskq.app", "taskq.task", "taskq.broker", "taskq.results", "taskq.workers", "taskq.cli")),
        ("taskq.config", ("taskq.app", "taskq.task", "taskq.broker", "taskq.results", "taskq.workers", "taskq.cli")),
        ("taskq.log", ("taskq.app", "taskq.task", "taskq.broker", "taskq.results", "taskq.workers", "taskq.cli")),
        ("taskq.broker", ("taskq.app", "taskq.task", "taskq.signature", "taskq.results", "taskq.workers", "taskq.cli")),
        ("taskq.results", ("taskq.app", "taskq.task", "taskq.signature", "taskq.broker", "taskq.workers", "taskq.cli")),
        ("taskq.task", ("taskq.app", "taskq.broker", "taskq.config", "taskq.workers", "taskq.cli")),
    ],
)
def test_what_lies_lower_does_not_know_what_lies_higher(lower: str, higher: tuple[str, ...]) -> None:
    for module in modules("taskq"):
        if _is_in(module.name, (lower,)):
            assert {name for name in imports(module) if _is_in(name, higher)} == set(), module.name


@pytest.mark.parametrize(
    ("low", "known"),
    [
        ("taskq.errors", {"taskq.describe"}),
        ("taskq.retry", {"taskq.checks", "taskq.errors"}),
        ("taskq.attempt", {"taskq.decoding", "taskq.describe", "taskq.errors", "taskq.retry"}),
    ],
)
def test_what_tasks_are_told_lies_low(low: str, known: set[str]) -> None:
    [module] = [module for module in modules("taskq") if module.name == low]
    assert {name for name in imports(module) if _is_in(name, ("taskq",))} == known


def test_no_module_imports_itself_in_a_circle_not_even_inside_functions() -> None:
    known = {module.name for module in modules("taskq")}
    graph = {module.name: {name for name in _targets(module, known) if name != module.name} for module in modules("taskq")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def _targets(module: Module, known: set[str]) -> set[str]:
    return {name for name in imports(module, for_types=False) if name in known}


def test_an_application_imports_neither_drivers_nor_the_command_line_nor_the_workers() -> None:
    code = "import sys, taskq; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    unwanted = (*MESSAGING, "click", "rich", "structlog", "asyncio", "multiprocessing", "taskq.workers", "taskq.cli")
    assert "taskq.app" in loaded
    assert {name for name in loaded if _is_in(name, unwanted)} == set()


def test_an_application_on_windows_can_import_taskq() -> None:
    """Windows lacks these modules; sending over AMQP must not need them."""
    code = """
import sys
sys.modules |= dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios"])
from taskq import TaskQ
TaskQ("shop", broker="amqp://127.0.0.1//")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
