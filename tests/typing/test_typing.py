"""What mypy and pyright make of an application that uses taskq: right calls are typed, wrong ones rejected."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent

Check = Callable[[Path], dict[int, str]]


def mypy(file: Path) -> dict[int, str]:
    """What mypy --strict says, by line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    errors = re.findall(rf"^{re.escape(str(file.relative_to(ROOT)))}:(\d+): error: (.*)$", ended.stdout, re.MULTILINE)
    assert bool(errors) == bool(ended.returncode), ended.stdout + ended.stderr
    return {int(line): message for line, message in errors}


def pyright(file: Path) -> dict[int, str]:
    """What pyright says in its strict mode, by line."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    found = json.loads(ended.stdout)["generalDiagnostics"]
    return {error["range"]["start"]["line"] + 1: error["message"] for error in found if error["severity"] == "error"}


@pytest.mark.parametrize("check", [mypy, pyright])
def test_right_calls_are_accepted_with_their_types(check: Check) -> None:
    assert check(FOLDER / "accepted.py") == {}


@pytest.mark.parametrize("check", [mypy, pyright])
def test_wrong_calls_are_rejected(check: Check) -> None:
    file = FOLDER / "rejected.py"
    wrong = {number for number, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# rejected")}
    errors = check(file)
    assert set(errors) == wrong, errors
