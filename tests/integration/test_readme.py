"""The README's five minutes, run as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_quickstart_runs_as_written(tmp_path: Path) -> None:
    text = README.read_text()
    blocks = re.findall(r"^```(?:python|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block)
    [started] = [block for block in blocks if block.startswith("$ taskq worker")]
    [ordered] = [block for block in blocks if block.startswith("$ python order.py")]
    expected = ordered.partition("\n")[2]

    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
    environment["XDG_STATE_HOME"] = str(tmp_path)
    python = {"taskq": [sys.executable, "-m", "taskq"], "python": [sys.executable]}
    program, *arguments = shlex.split(started.removeprefix("$ "))
    worker = subprocess.Popen([*python[program], *arguments], cwd=tmp_path, env=environment)
    try:
        order = subprocess.run(
            [sys.executable, "order.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        worker.terminate()
        code = worker.wait(60)
    assert order.stdout == expected, order.stderr
    assert code == 0
