"""Who collects which child: the reaper the orphans, everybody else their own."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: in this one, the reaper would take what the tests have started.
PROGRAM = """
import os, signal, subprocess, sys
from taskq.workers.reaper import Reaper

def wait_for(process_id):
    os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)

reaper = Reaper()
own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
reaper.spare(own)
orphans = [os.posix_spawn("/bin/true", ["true"], os.environ) for _ in range(3)]
for process_id in (own.pid, *orphans):
    wait_for(process_id)
reaper.watch()
assert own.wait() == 3
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nobody is left")

waker, woken = os.pipe()
os.set_blocking(woken, False)
signal.set_wakeup_fd(woken)
again = os.posix_spawn("/bin/true", ["true"], os.environ)
os.read(waker, 1)
reaper.reap()
try:
    os.waitpid(again, os.WNOHANG)
except ChildProcessError:
    print("nor later")
"""


def test_orphans_are_collected_and_own_processes_keep_their_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("nobody is left\nnor later\n", "")
