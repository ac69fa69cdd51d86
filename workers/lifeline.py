"""The lifeline: a process that ends when its parent dies, whatever it is doing.

On Linux the kernel does it (``prctl(PR_SET_PDEATHSIG)``), so that not even a C call that holds the interpreter lock outlives
the supervisor. Elsewhere a thread watches the parent's id, which a task that holds the lock can delay.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent, of this process id, dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        # It died before the kernel knew that we care.
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
