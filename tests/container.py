"""Containers for tests, made of the kernel's own parts: what a container runtime does to a worker, without one.

A command becomes process 1 of a PID namespace, under a user id that no file knows, without capabilities, with an environment of
its own, on a root file system that can't be written. The network is the machine's, so that the tests' servers can be reached.
It takes root to make one: where that is not to be had, such tests are left out, and the run says so.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support import ROOT, Worker, eventually

#: A user that no /etc/passwd knows.
UNKNOWN_USER = 54321
#: What it takes beside the kernel.
PROGRAMS = ("unshare", "nsenter", "setpriv", "systemctl", "systemd-analyze")


@dataclass(frozen=True)
class Group:
    """A memory control group, as the container sees it: at the top of what ``mount`` mounts at ``place``."""

    folder: Path
    place: Path
    mount: str


def contained(
    command: Sequence[str],
    environment: Mapping[str, str],
    writable: Sequence[Path] = (),
    group: Group | None = None,
    folder: Path = ROOT,
) -> list[str]:
    """The command line that runs this one in ``folder``, as process 1 of a container that can write to ``writable`` alone."""
    for place in writable:
        for path in (place, *place.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
    inside = [
        "set -e",
        "mount --make-rprivate /",
        *_hierarchy(group),
        *_uncover([Path(sys.base_prefix), Path(sys.prefix).resolve(), ROOT], writable),
        "mount -o remount,bind,ro /",
        f"cd {folder}",
        f"exec {shlex.join([*_nobody(environment), *command])}",
    ]
    enter = f"echo 0 >{group.folder}/cgroup.procs; " if group else ""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup"]
    return ["sh", "-c", f"{enter}exec {shlex.join([*unshare, 'sh', '-c', '; '.join(inside)])}"]


def execute(worker: Worker, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """Run a command in the worker's container, as ``docker exec`` does; returns what it prints."""
    enter = ["nsenter", "--target", str(first_process(worker)), "--mount", "--pid", f"--wd={folder}"]
    done = subprocess.run([*enter, *_nobody(environment), *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _nobody(environment: Mapping[str, str]) -> list[str]:
    """What has a command run as the unknown user, without rights, and with this environment alone."""
    user = [f"--reuid={UNKNOWN_USER}", f"--regid={UNKNOWN_USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    return ["setpriv", *user, "env", "-i", *(f"{name}={value}" for name, value in environment.items())]


@cache
def lacking() -> str:
    """What this machine lacks for tests that make namespaces; empty where it has all."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} (Debian's util-linux and systemd)"
    probe = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--cgroup", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if os.getuid() == 0 and tried.returncode == 0 else "root, and leave to make namespaces"


def _hierarchy(group: Group | None) -> list[str]:
    """Mount the control groups anew, so that the container sees its own at the top."""
    if group is None:
        return []
    top = Path("/sys/fs/cgroup")
    lines = ["umount --recursive --lazy /sys/fs/cgroup"]
    if group.place != top:
        lines += [f"mount -t tmpfs tmpfs {top}", f"mkdir {group.place}"]
    return [*lines, f"mount {group.mount} cgroup {group.place}"]


def _uncover(readable: Sequence[Path], writable: Sequence[Path]) -> list[str]:
    """Let strangers through the folders above these that are closed to them, and see only these."""
    covers = sorted({cover for path in (*readable, *writable) if (cover := closed_above(path)) is not None})
    paths = [*writable, *(path for path in readable if closed_above(path) is not None)]
    lines = ["mount -t tmpfs tmpfs /mnt"]
    for number, path in enumerate(paths):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {path} /mnt/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {cover}" for cover in covers]
    for number, path in enumerate(paths):
        lines += [f"mkdir -p {path}", f"mount --bind /mnt/{number} {path}"]
    lines += [f"mount -o remount,bind,ro {cover}" for cover in covers]
    return [*lines, "umount --recursive --lazy /mnt"]


def closed_above(path: Path) -> Path | None:
    """The topmost folder above this path that others may not pass through."""
    closed = [folder for folder in path.parents if not folder.stat().st_mode & stat.S_IXOTH]
    return closed[-1] if closed else None


def first_process(worker: Worker) -> int:
    """The id that the container's process 1 has outside."""

    def child() -> int:
        text = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
        return int(text.split()[0]) if text else 0

    return eventually(child, "the container has a first process")


def stop(worker: Worker, number: int = signal.SIGTERM) -> int:
    """Send the signal to process 1, as ``docker stop`` and Kubernetes do, and wait; returns its exit code."""
    os.kill(first_process(worker), number)
    return worker.wait()
