"""The pytest plugin, in pytests of its own: the documentation's examples as written, and what it does to others: nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT

DOCUMENT = ROOT / "docs" / "testing.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in which taskq is installed, as far as its plugins are concerned: by the entry points that it declares."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    metadata = tmp_path / "site" / "taskq_here-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: taskq-here\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()) for group, points in declared.items()
    ]
    (metadata / "entry_points.txt").write_text("".join(lines))
    return tmp_path


def run_pytest(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(project / "site"), str(project)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TASKQ_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *options],
        cwd=project,
        env={**environment, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_documentation_runs_as_written(project: Path, options: tuple[str, ...]) -> None:
    blocks = re.findall(r"^```(?:python|ini)\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    tests = 0
    for block in blocks:
        name = re.match(r"# ([\w.]+)\n", block)
        assert name is not None, f"a block that is no file would not be run:\n{block}"
        (project / name[1]).write_text(block)
        tests += block.count("\ndef test_")
    assert tests >= 8
    ended = run_pytest(project, *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{tests} passed" in ended.stdout
    assert "warning" not in ended.stdout


def test_who_does_not_use_it_pays_nothing(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\ntaskq_app = no.such.module:app\n")
    (project / "test_other.py").write_text("""
import sys

def test_other():
    assert "taskq.pytest_plugin" in sys.modules
    for name in ("taskq.testing", "taskq.workers", "taskq.cli", "kombu", "no"):
        assert name not in sys.modules, name
""")
    ended = run_pytest(project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (project / "pytest.ini").unlink()
    assert run_pytest(project).returncode == 0


def test_an_app_that_is_not_there_fails_the_tests_that_want_it(project: Path) -> None:
    (project / "test_wanting.py").write_text("def test_wanting(taskq_worker): pass\ndef test_other(): pass\n")
    ended = run_pytest(project)
    assert ended.returncode == 1
    assert "set the ini option, as in taskq_app = shop.app:app" in ended.stdout
    assert "1 passed, 1 error" in ended.stdout
    (project / "pytest.ini").write_text("[pytest]\ntaskq_app = no_such_module:app\n")
    ended = run_pytest(project)
    assert "there is no module 'no_such_module'" in ended.stdout
    assert "1 passed, 1 error" in ended.stdout


def test_each_test_begins_with_nothing_and_leaves_nothing(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\ntaskq_app = small\n")
    (project / "small.py").write_text("""
from taskq import TaskQ

app = TaskQ("small", broker="amqp://nobody.invalid//")

@app.task
def fail():
    raise ValueError
""")
    (project / "test_small.py").write_text("""
import pytest
import small

@pytest.mark.parametrize("number", [1, 2])
def test_leaves_messages(taskq_app, taskq_worker, number):
    assert taskq_app is small.app
    assert taskq_worker.run() == []
    small.fail.delay()
    assert taskq_app.publisher.depth("default") == 1
    raise LookupError("as tests do")

def test_after():
    assert small.app.settings.broker == "amqp://nobody.invalid//"
""")
    ended = run_pytest(project)
    assert "2 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr
    assert ended.stdout.count("E       LookupError: as tests do") == 2
