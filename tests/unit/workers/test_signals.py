"""What an import or a task leaves behind that would strike later."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, signal
from taskq.workers import signals
timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
restore = signals.keeper(signals.DEAF)
for timer in timers:
    signal.setitimer(timer, 60.0)
signals.ignore_shutdown_signals() if {after_import} else restore()
print(json.dumps([signal.getitimer(timer) for timer in timers]))
"""


@pytest.mark.parametrize("after_import", [True, False])
def test_no_timer_is_left_behind(after_import: bool) -> None:
    program = PROGRAM.format(after_import=after_import)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[0.0, 0.0]] * 3
