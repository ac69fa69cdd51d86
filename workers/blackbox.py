"""The black box: a file in memory into which a child writes where its threads stand, and which outlives it.

The child writes on a fatal signal (SIGSEGV, SIGABRT, …) and on ``DUMP_SIGNAL``. ``faulthandler`` does it in the signal handler
itself, without the interpreter lock, so it works also while a C call holds that. The supervisor keeps a descriptor of the same
file and reads it when the child is dead, or about to be killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import tempfile

from taskq.workers.signals import DUMP_SIGNAL

#: The longest text that is read out of a box, in bytes.
LONGEST_TEXT = 16_384
_STANDARD_ERROR = 2


def create() -> int:
    """A descriptor of an empty box."""
    if sys.platform == "linux":
        return os.memfd_create("taskq-black-box")
    descriptor, path = tempfile.mkstemp(prefix="taskq-black-box-")
    os.unlink(path)
    return descriptor


def install(box: int) -> None:
    """Have this process write into the box from now on, for as long as it lives.

    Where the application has enabled faulthandler itself, fatal signals are reported where it wants them.
    """
    # It came through a socket or an exec, either of which leaves it open for the programs that a task starts.
    os.set_inheritable(box, False)
    if not faulthandler.is_enabled():
        faulthandler.enable(box)
    faulthandler.register(DUMP_SIGNAL, box, all_threads=True, chain=False)
    os.register_at_fork(after_in_child=lambda: _point_at_standard_error(box))


def _point_at_standard_error(box: int) -> None:
    """A process that a task forks must not write into the box, as if it were the child."""
    with contextlib.suppress(OSError):  # it has no standard error: then it stays silent, or writes nowhere
        os.dup2(_STANDARD_ERROR, box, inheritable=False)


def read(box: int) -> str:
    """What is in the box, without the beginning where it is too long: the thread that runs the tasks comes last."""
    size = os.fstat(box).st_size
    # By position, because the file's offset is shared with the child, which writes there.
    text = os.pread(box, LONGEST_TEXT, max(0, size - LONGEST_TEXT)).decode(errors="replace").strip()
    return text if size <= LONGEST_TEXT else f"… {text}"
