"""The documentation keeps its word: every block is run, or says why not, and what the code has is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskq
from taskq.workers.metrics import Metrics
from taskq.workers.vitals import Vitals
from taskq.workers.watchdog import Depths
from tests.architecture.source import modules
from tests.documentation import PAGES, README, Reader, blocks, check
from tests.support import ROOT

LANGUAGES = {"python", "console", "ini", "text"}
OPERATIONS, MONITORING = ROOT / "docs" / "operations.md", ROOT / "docs" / "monitoring.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT)).removeprefix("docs/")


#: Pages whose blocks are run by tests of their own, which know more of what should come out, and where these are.
ELSEWHERE = {
    page: {"testing.md": "test_pytest_plugin.py", "schedules.md": "test_schedules.py"}.get(name_of(page), "test_deploy_*.py")
    for page in PAGES
    if name_of(page) in ("testing.md", "schedules.md") or page.parent.name == "deployment"
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES or page in ELSEWHERE, str(block)
        check(block)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE], ids=name_of)
def test_a_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/shop.db"
    # The README begins where nothing is set; other pages name servers, and the environment has the last word.
    servers = {} if page == README else {"TASKQ_BROKER": database, "TASKQ_BACKEND": database}
    with Reader(tmp_path, **servers) as reader:
        reader.read(page)


@pytest.mark.parametrize("page", ELSEWHERE, ids=name_of)
def test_pages_that_are_run_elsewhere_are(page: Path) -> None:
    tests = (ROOT / "tests" / "integration").glob(ELSEWHERE[page])
    assert any(f'{name_of(page)}"' in test.read_text() for test in tests)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert built.returncode == 0, built.stdout + built.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    described = set(re.findall(r'id="taskq\.(?:\w+\.)*(\w+)"', reference))
    assert set(taskq.__all__) - described == set()
    commands = (tmp_path / "site" / "commands" / "index.html").read_text()
    assert "max_crashes" in commands
    assert "taskq dead replay" in commands


def events(*levels: str) -> Iterator[str]:
    """The events that taskq logs at these levels."""
    for module in modules("taskq"):
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=level),
                    args=[ast.Constant(value=str(event)), *_],
                ) if level in levels:
                    yield event


def test_operators_find_every_event() -> None:
    text = OPERATIONS.read_text()
    missing = {event for event in events("warning", "error") if f"`{event}`" not in text}
    assert missing == set()
    firsts = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    told = {name for cell in firsts for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", cell)}
    # The log says of itself what it could not write; no logger does.
    assert told - set(events("info", "warning", "error")) == {"log_lines_dropped"}
    assert len(told) > 40


def test_operators_find_every_metric() -> None:
    vitals = Vitals(0.0)
    vitals.connected(0.0)
    depths = Depths(ready={"mail": 1}, oldest={}, asked_at=0.0)
    exported = {
        family.name + ("_total" if family.type == "counter" else "") for family in Metrics(vitals, lambda: depths).collect()
    }
    text = MONITORING.read_text()
    described, alarms = text.split("## Alarms")
    assert set(re.findall(r"`(taskq_\w+)`", described)) == exported
    used = {name.removesuffix("_bucket") for name in re.findall(r"taskq_\w+", alarms)}
    assert used - exported == set()
