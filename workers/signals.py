"""The signals of the zygote and of the children, and that they stay theirs whatever the application does with signals.

The supervisor sends a child two of its own besides SIGKILL: real-time signals on Linux, because applications and libraries use
the classic ones; elsewhere there are no others.
"""

from __future__ import annotations

# The functions in C: gevent and eventlet replace those of ``signal``, whose getsignal costs microseconds.
import _signal  # type: ignore[import-not-found]  # typeshed has no stub of it
import faulthandler
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

if sys.platform == "linux":
    #: Write down where every thread stands, at once, whatever the interpreter is doing (``blackbox``).
    DUMP_SIGNAL: int = signal.SIGRTMAX - 1
    #: End the running task with an exception.
    SOFT_SIGNAL: int = signal.SIGRTMAX - 2
else:
    DUMP_SIGNAL = int(signal.SIGUSR2)
    SOFT_SIGNAL = int(signal.SIGUSR1)

_SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Handler = Callable[..., Any]

set_handler: Callable[[int, Any], Any] = _signal.signal
get_handler: Callable[[int], Any] = _signal.getsignal
#: As these functions want it, which know nothing of ``signal.SIG_DFL``.
DEFAULT = int(_signal.SIG_DFL)
set_wakeup: Callable[..., int] = _signal.set_wakeup_fd
_set_timer: Callable[..., Any] = _signal.setitimer
_TIMERS = (int(_signal.ITIMER_REAL), int(_signal.ITIMER_VIRTUAL), int(_signal.ITIMER_PROF))


def do_nothing(*_: object) -> None:
    """A handler rather than SIG_IGN, because ignored signals stay ignored in programs that a task starts."""


#: The supervisor alone decides when a child ends, also where a terminal or Kubernetes signals the whole group.
DEAF: Mapping[int, Handler] = dict.fromkeys(_SHUTDOWN_SIGNALS, do_nothing)


def ignore_shutdown_signals() -> None:
    """Set the handlers of ``DEAF``, and let through what the supervisor and the kernel say, whatever was set before."""
    for number, handler in DEAF.items():
        set_handler(number, handler)
    end_timers()
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {*DEAF, SOFT_SIGNAL, DUMP_SIGNAL, signal.SIGCHLD})


def end_timers() -> None:
    """End what would strike whoever runs later: wake-ups, alarms, and the timers of profilers and watchdogs."""
    set_wakeup(-1)
    for timer in _TIMERS:
        _set_timer(timer, 0.0)
    faulthandler.cancel_dump_traceback_later()


def keeper(handlers: Mapping[int, Handler]) -> Callable[[], None]:
    """What brings these handlers back, and ends the timers that a task left behind."""
    pairs = tuple(handlers.items())

    def restore() -> None:
        for number, handler in pairs:
            if get_handler(number) is not handler:
                set_handler(number, handler)
        end_timers()

    return restore


class _Mask(threading.local):
    """The signals that the forking thread had blocked before."""

    blocked: Collection[int] = ()


_mask = _Mask()


def hold_before_fork() -> None:
    """Have signals wait until ``release_after_fork``: one that hit a copy before it has its own handlers would be lost."""
    _mask.blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, DEAF)


def release_after_fork() -> None:
    """The process has forked, or could not."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _mask.blocked)


def default_in_copy() -> None:
    """In a process that a task has forked: signals end it, as whoever forked it expects (``Process.terminate``)."""
    for number in DEAF:
        if get_handler(number) is do_nothing:
            set_handler(number, signal.default_int_handler if number == signal.SIGINT else DEFAULT)
    release_after_fork()
