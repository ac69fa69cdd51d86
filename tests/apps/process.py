"""An application whose import and whose tasks do to their process what they should not.

``IMPORT`` in the environment names what the import does; see the functions named ``import_…``.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import Any

if os.environ.get("IMPORT") == "gevent":
    from gevent import monkey

    monkey.patch_all()
elif os.environ.get("IMPORT") == "eventlet":
    import eventlet

    eventlet.monkey_patch()

import asyncio

from taskq import Attempt, TaskQ
from tests.apps.traces import gate, pass_gate, trace

app = TaskQ("process")
#: Whom a task becomes. Only root may become somebody else.
ANOTHER = os.getuid() or 65_534


def import_signals() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGRTMAX - 2})
    mine, _ = pair = socket.socketpair()
    mine.setblocking(False)
    signal.set_wakeup_fd(mine.fileno())
    mine.close()
    pair[1].close()


def import_timeout() -> None:
    socket.setdefaulttimeout(0.3)


def import_print() -> None:
    print("printed at import", end="")


def import_chdir() -> None:
    os.chdir("/")


def import_streams() -> None:
    sys.stdout.close()


def import_fork() -> None:
    if os.fork():
        os.wait()


def import_connection() -> None:
    """To whoever listens at PEER, and stays connected."""
    global connection  # noqa: PLW0603  # kept, as a driver's is
    host, port = os.environ["PEER"].split(":")
    connection = socket.create_connection((host, int(port)))


def import_another_user() -> None:
    """A user who may have no processes while the gate "full" is open, which root may, and yet may read what root may."""
    if not os.geteuid():
        os.setresuid(54_321, 0, 0)
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, nothing)
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (0 if gate("full").exists() else most, most))

    os.register_at_fork(before=limit)


connection: Any = None
if (importing := globals().get("import_" + os.environ.get("IMPORT", ""))) is not None:
    importing()


@app.task(name="run", bind=True)
def run(attempt: Attempt, how: str = "", first_only: bool = False) -> str:
    """Does to the process what the function of this name does; returns what that returns, "done" for nothing."""
    trace("run", how=how, crashes=attempt.crashes)
    if first_only and attempt.crashes:
        return "done"
    return str(globals()[f"do_{how}"]() or "done") if how else "done"


@app.task(name="once", acks_late=False, time_limit=60)
def once(key: str) -> str:
    trace("once", key=key)
    return key


@app.task(name="hold", time_limit=60)
def hold(key: str) -> str:
    trace("hold", key=key)
    pass_gate("gate")
    return key


@app.task(name="limited", time_limit=0.5)
def limited() -> None:
    trace("limited")
    start_program()
    while True:
        pass


@app.task(name="soft", soft_time_limit=0.3, time_limit=30)
def soft() -> None:
    trace("soft")
    while True:
        pass


@app.task(name="whose")
def whose(number: int) -> int:
    return number


def start_program() -> int:
    """A program that goes on for as long as it is let, and writes its process id."""
    program = subprocess.Popen(["sleep", "300"])
    trace("program", program=program.pid)
    return program.pid


def do_exit() -> None:
    os._exit(3)


def do_loop_signals() -> None:
    """Never closes its loop."""
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    loop.run_until_complete(asyncio.sleep(0))
    loop.remove_signal_handler(signal.SIGTERM)


def do_default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def do_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.3)


def do_time() -> None:
    time.time = lambda: "x"  # type: ignore[assignment,return-value]  # on purpose


def do_clock() -> None:
    time.monotonic = lambda: 0.0


def do_dump_later() -> None:
    faulthandler.dump_traceback_later(0.3, exit=True)


def do_fork_return() -> None:
    if child := os.fork():
        trace("copy", status=os.waitpid(child, 0)[1])


def do_fork_raise() -> None:
    if not (child := os.fork()):
        raise ValueError("in the copy")
    trace("copy", status=os.waitpid(child, 0)[1])


def do_fork_exit() -> None:
    if not (child := os.fork()):
        sys.exit(7)
    trace("copy", status=os.waitpid(child, 0)[1])


def do_fork_stay() -> None:
    """The copy comes out of the task long after the task has ended."""
    if not os.fork():
        pass_gate("copy")


def do_terminate() -> str:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
    process.start()
    process.terminate()
    process.join()
    return str(process.exitcode)


def do_pool() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply_async(time.sleep, (300,))


def do_print() -> None:
    print("printed in a task")
    signal.pause()


def do_print_closed() -> None:
    print("nowhere")
    print("nor here", file=sys.stderr)


def do_user() -> None:
    os.seteuid(ANOTHER)
    while True:
        pass


def do_group() -> None:
    os.setegid(ANOTHER)
    while True:
        pass


def do_program_and_crash() -> None:
    start_program()
    os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()


def do_program_and_wait() -> None:
    """Whatever anybody says."""
    start_program()
    while True:
        with contextlib.suppress(BaseException):
            signal.pause()


def do_own_session() -> str:
    program = subprocess.Popen(["sleep", "300"], start_new_session=True)
    trace("program", program=program.pid)
    os._exit(3)


def do_garble() -> None:
    """Writes into its pipe what announces gigabytes."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:") and int(name) > 2:
                os.write(int(name), b"\xff" * 64)
        except OSError:
            continue
    signal.pause()


def do_stop_zygote() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    trace("stopped", zygote=os.getppid())
    os._exit(3)
