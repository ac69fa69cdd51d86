"""The signals that the supervisor sends to a child besides SIGKILL.

Real-time signals on Linux, because applications and libraries use the classic ones; elsewhere there are no others.
"""

from __future__ import annotations

import signal
import sys

if sys.platform == "linux":
    #: Write down where every thread stands, at once, whatever the interpreter is doing (``blackbox``).
    DUMP_SIGNAL: int = signal.SIGRTMAX - 1
    #: End the running task with an exception.
    SOFT_SIGNAL: int = signal.SIGRTMAX - 2
else:
    DUMP_SIGNAL = int(signal.SIGUSR2)
    SOFT_SIGNAL = int(signal.SIGUSR1)
