"""The machine: Python, packages, descriptors, and the disks that SQLite files and a worker's notes are on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from taskq.config import Settings, state_database
from taskq.doctor.finding import Finding, error, ok, warning
from taskq.doctor.patient import Patient
from taskq.errors import DatabaseError
from taskq.liveness import Pipe, folder_of
from taskq.sqlite import Database, path_of
from taskq.version import DISTRIBUTION, version

#: The driver of each kind of backend that needs one, and the extra of ours that installs it.
DRIVERS: Mapping[str, tuple[str, str]] = {
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "redis+socket": ("redis", "redis"),
    "postgresql": ("psycopg", "postgres"),
}
#: Descriptors that a supervisor has beside its children's, and those for each child.
_DESCRIPTORS, _DESCRIPTORS_PER_CHILD = 100, 10
#: Locks are kept by the machine alone there, if at all, so that two machines would write over each other's work.
_NETWORKED = re.compile(r"nfs\d?|cifs|smb\d|smbfs|9p|virtiofs|afs|ceph|lustre|glusterfs|gpfs|ocfs2|gfs2|fuse\..*")
_VOLATILE = ("tmpfs", "ramfs")
#: Where a worker's notes of what it runs are kept, which need not survive the machine.
_NOTES = "state folder"
_MIB = 2**20
_FULL, _NEARLY_FULL = 50 * _MIB, 1024 * _MIB


def python(_: Patient) -> Iterator[Finding]:
    """What runs this."""
    text = f"Python {platform.python_version()} on {platform.platform()}"
    if sys.platform != "linux":
        yield warning("python", text, "run workers on Linux, which is what is tested")
    else:
        yield ok("python", text)


def packages(patient: Patient) -> Iterator[Finding]:
    """Whether what taskq needs is installed, in versions that it can use."""
    driver, extra = DRIVERS.get(patient.settings.backend.partition("://")[0], (None, None))
    if not (installed := version()):
        yield warning("packages", "this is a checkout that is not installed", f"pip install {DISTRIBUTION}")
        return
    seen = {DISTRIBUTION: installed}
    for requirement in metadata.requires(DISTRIBUTION) or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement and name != driver:
            continue
        install = f"pip install '{DISTRIBUTION}[{extra}]'" if name == driver else f"pip install --upgrade {DISTRIBUTION}"
        try:
            seen[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield error("packages", f"{name} is not installed", install)
            continue
        if not satisfies(seen[name], requirement):
            wanted = requirement.partition(";")[0].strip()
            yield error("packages", f"{name} {seen[name]} is installed, and taskq needs {wanted}", install)
    yield ok("packages", ", ".join(f"{name} {version}" for name, version in seen.items()))


def satisfies(version: str, requirement: str) -> bool:
    """Whether the version is within the bounds (``>=`` and ``<``) of a requirement."""
    bounds: list[tuple[str, str]] = re.findall(r"(>=|<)([\d.]+)", requirement.partition(";")[0])
    return all((_numbers(version) >= _numbers(bound)) is (sign == ">=") for sign, bound in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


def descriptors(patient: Patient) -> Iterator[Finding]:
    """Whether this process may open enough files for a worker."""
    if sys.platform == "win32":
        return
    import resource

    # A worker raises its own limit as far as it may.
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS + _DESCRIPTORS_PER_CHILD * patient.settings.concurrency
    if 0 <= limit < wanted:
        text = f"{limit} files may be open at once, and a worker with {patient.settings.concurrency} children wants {wanted}"
        yield warning("descriptors", text, "raise 'ulimit -n', or LimitNOFILE= of the systemd unit")
    else:
        yield ok("descriptors", f"{'any number of' if limit < 0 else limit} files may be open at once")


def disks(patient: Patient) -> Iterator[Finding]:
    """Whether SQLite files and the folder of workers' notes are where they are safe, and where there is room."""
    for what, path in _places(patient.settings):
        folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
        if what != _NOTES:
            yield kept(what, path, file_system(folder))
            yield from public(what, path)
        free = shutil.disk_usage(folder).free
        text = f"{what} {path}: {free // _MIB:,} MiB are free"
        if free < _FULL:
            yield error("disk", text, "make room, or move it to another disk; a full disk refuses each new task and result")
        elif free < _NEARLY_FULL:
            yield warning("disk", text, "make room before it is full")
        else:
            yield ok("disk", text)
        if not os.access(folder, os.W_OK):
            yield error("disk", f"{what} {path}: this user may not write in {folder}", f"make {folder} writable")


def _places(settings: Settings) -> Iterator[tuple[str, Path]]:
    urls = {"broker": settings.broker, "backend": settings.backend}
    files = {path_of(url): name for name, url in reversed(urls.items()) if url.startswith("sqlite:")}
    for path, name in files.items():
        yield name, path
    if state_database() not in files:
        yield _NOTES, state_database().parent


def kept(what: str, path: Path, kind: str) -> Finding:
    """Whether a file system of this kind keeps an SQLite file as it must."""
    text = f"{what} {path} is on {kind or 'a file system of unknown kind'}"
    if _NETWORKED.fullmatch(kind):
        return error("disk", f"{text}, which does not keep SQLite's locks", "name a file on a local disk, or use RabbitMQ")
    if kind in _VOLATILE:
        return warning("disk", f"{text}: in memory, where a restart of the machine loses it", "name a file on a disk")
    if kind == "overlay":
        return warning("disk", f"{text}: of a container, probably, with which it goes away", "name a file on a volume")
    return ok("disk", text)


def public(what: str, path: Path) -> Iterator[Finding]:
    """Whether others than its user can read the file, as those could that an earlier taskq made."""
    bits = path.stat().st_mode & 0o777 if path.exists() else 0
    if bits & 0o004:
        text = f"{what} {path} can be read by every user of this machine ({bits:04o})"
        yield warning("disk", text, f"chmod o= {path}* and, unless others need it, {path.parent}")


def file_system(folder: Path, mounts: str | None = None) -> str:
    """The kind of the file system that the folder is on, as the kernel names it; empty where it does not tell.

    ``mounts`` is what stands in /proc/self/mountinfo.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
    inside, depth, kind = folder.resolve(), 0, ""
    for line in mounts.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw
        place, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place.split(" ")[4]))
        # Of two mounts at one point, the later one hides the other.
        if inside.is_relative_to(point) and len(point.parts) >= depth:
            depth, kind = len(point.parts), rest.split(" ")[0]
    return kind


def locks(patient: Patient) -> Iterator[Finding]:
    """Whether workers can show that they are alive beside the broker's file."""
    if not patient.embedded:
        return
    try:
        database = Database(path_of(patient.settings.broker))
        try:
            Pipe(folder_of(database), "waiter").close()
        finally:
            database.close()
    except DatabaseError as failure:
        yield error("locks", str(failure), "let this user write there, on a file system with named pipes and locks")
    else:
        yield ok("locks", "named pipes and locks work beside the broker's file")
