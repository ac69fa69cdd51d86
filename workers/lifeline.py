"""The lifeline: a process that ends when its parent dies, whatever it is doing.

On Linux the kernel does it (``prctl(PR_SET_PDEATHSIG)``), so that not even a C call that holds the interpreter lock outlives
the supervisor. Elsewhere a thread watches the parent's id, which a task that holds the lock can delay.

The kernel forgets that wish when the process changes its user or group (``seteuid``). So children hold on to a pipe as well, of
which the zygote has the other end: when that closes, the kernel sends them SIGKILL in place of SIGIO.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent, of this process id, dies. To be said again after a change of user."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        # It died before the kernel knew that we care.
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_pipe(reader: int) -> None:
    """Have this process killed when the last writer of this pipe, into which nobody writes, is gone.

    To be called before ``die_with_parent``, which notices what has happened before.
    """
    if sys.platform != "linux":
        return
    # Where /proc is not to be had, the parent's death has to do.
    with contextlib.suppress(OSError):
        # Opened anew: whom a pipe signals belongs to the opening, and all children inherit the same one.
        own = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
