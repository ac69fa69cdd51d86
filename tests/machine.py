"""A systemd of the tests' own: the real one, as process 1 of its own namespaces, with its own /etc, /srv and control groups.

What it does ends with it: the units, users and files that a test makes exist in there alone. The network is the machine's.
It takes root to make one: see ``tests.container``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.servers import die_with_parent, spawner
from tests.support import PATIENCE, ROOT, eventually

SYSTEMD = Path("/lib/systemd/systemd")
#: Where the interpreter of the tests can be seen, this checkout and the installed packages: the unit may look neither into
#: anybody's home nor into /tmp.
PYTHON, CHECKOUT, PACKAGES = Path("/opt/python"), Path("/opt/checkout"), Path("/opt/packages")
#: The machine's own units that are there; all others are not.
UNITS = (
    *("basic", "local-fs", "multi-user", "network", "network-online", "paths", "remote-fs", "shutdown", "slices", "sockets"),
    *("sysinit", "timers"),
)
JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
_CGROUPS = Path("/sys/fs/cgroup")


class Systemd:
    """A running systemd; ``run`` runs a command inside."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = 0

    @property
    def text(self) -> str:
        """What systemd itself has written."""
        return self._log.read_text(errors="replace")

    def boot(self) -> None:
        """Wait until it is up."""

        def first() -> int:
            assert self._process.poll() is None, self.text
            text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            return int(text.split()[0]) if text else 0

        self.pid = eventually(first, "there is a process 1")
        eventually(lambda: self.ask("systemctl is-system-running") in ("running", "degraded"), "systemd is up", 30.0)

    def run(self, command: str) -> str:
        """Run a shell command inside; returns what it prints. Raises ``AssertionError`` with the journal where it fails."""
        done = self._inside(command)
        if done.returncode:
            journal = self._inside("journalctl --no-pager --output cat --lines 40").stdout
            raise AssertionError(f"{command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}\n{journal}")
        return done.stdout

    def ask(self, command: str) -> str:
        """What a shell command inside prints, whether or not it succeeds."""
        return self._inside(command).stdout.strip()

    def property(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.ask(f"systemctl show --property {name} --value {unit}")

    def _inside(self, command: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--wd=/"]
        environment = {
            "PATH": f"{os.defpath}:/usr/sbin:/sbin",
            "SYSTEMD_UNIT_PATH": _UNIT_PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
        }
        return subprocess.run(
            [*enter, "sh", "-c", command], env=environment, capture_output=True, text=True, timeout=90, check=False
        )


_UNIT_PATH = "/etc/systemd/system:/run/units"


@contextmanager
def running_systemd(folder: Path) -> Iterator[Systemd]:
    """A systemd for the length of the block; its log goes into the folder."""
    if not SYSTEMD.exists():
        raise RuntimeError(f"{SYSTEMD} is missing: install systemd")
    name = f"taskq-test-{uuid.uuid4().hex[:8]}"
    groups = [place / name for place, _ in _hierarchies()]
    for group in groups:
        group.mkdir()
    join = [f"echo 0 >{group}/cgroup.procs" for group in groups]
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--uts", "--ipc"]
    script = "; ".join(["set -e", *join, f"exec {shlex.join([*unshare, 'sh', '-c', '; '.join(_set_up())])}"])
    log = folder / "systemd.log"
    with log.open("wb") as output:
        process = spawner.submit(
            subprocess.Popen,
            ["sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        ).result()
    systemd = Systemd(process, log)
    try:
        systemd.boot()
        yield systemd
    finally:
        process.kill()
        process.wait(PATIENCE)
        for group in groups:
            _remove(group)


def _hierarchies() -> Sequence[tuple[Path, str]]:
    """Where this machine has control groups that systemd works with, and how they are mounted."""
    if (_CGROUPS / "cgroup.procs").exists():
        return [(_CGROUPS, "-t cgroup2")]
    own = [(_CGROUPS / "systemd", "-t cgroup -o none,name=systemd"), (_CGROUPS / "unified", "-t cgroup2")]
    return [*own, *((_CGROUPS / name, f"-t cgroup -o {name}") for name in ("memory", "pids"))]


def _set_up() -> list[str]:
    """What happens in the new namespaces before systemd starts: everything that it changes becomes its own."""
    hierarchies = _hierarchies()
    lines = ["set -e", "mount --make-rprivate /", f"umount --recursive --lazy {_CGROUPS}"]
    if len(hierarchies) > 1:
        lines += [f"mount -t tmpfs tmpfs {_CGROUPS}", *(f"mkdir {place}" for place, _ in hierarchies)]
    lines += [f"mount {mount} cgroup {place}" for place, mount in hierarchies]
    lines += ["mount --bind /proc/sys /proc/sys", "mount -o remount,bind,ro /proc/sys"]
    # The interpreter first: it may lie below what is covered next.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    seen = {PYTHON: sys.base_prefix, CHECKOUT: ROOT, PACKAGES: site}
    lines += ["mount -t tmpfs tmpfs /mnt"]
    lines += [f"mkdir /mnt/{place.name} && mount --bind {source} /mnt/{place.name}" for place, source in seen.items()]
    lines += ["mount -t tmpfs -o mode=755 tmpfs /run", "mount -t tmpfs -o mode=755 tmpfs /srv", "mkdir /run/layers"]
    for number, folder in enumerate(("/etc", "/var/lib", "/var/log", "/opt")):
        layers = f"/run/layers/{number}"
        lines += [f"mkdir -p {layers}/upper {layers}/work"]
        lines += [f"mount -t overlay -o lowerdir={folder},upperdir={layers}/upper,workdir={layers}/work overlay {folder}"]
    lines += [f"mkdir -p {place} && mount --bind /mnt/{place.name} {place}" for place in seen]
    lines += ["umount --recursive --lazy /mnt"]
    lines += ["mount -t tmpfs -o mode=755 tmpfs /etc/systemd/system", "mkdir -p /run/units /etc/systemd/journald.conf.d"]
    lines += [f"cp /lib/systemd/system/{unit}.target /run/units/" for unit in UNITS]
    lines += [f"cp /lib/systemd/system/{unit} /run/units/" for unit in JOURNAL]
    lines += ["ln -s multi-user.target /run/units/default.target", "mkdir /run/units/sysinit.target.wants"]
    lines += ["ln -s ../systemd-journald.service /run/units/sysinit.target.wants/"]
    lines += [r"printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n' >/etc/systemd/journald.conf.d/tests.conf"]
    start = f"{SYSTEMD} --system --log-target=journal --log-level=info --show-status=no"
    return [*lines, f"exec env -i container=taskq PATH={os.defpath}:/usr/sbin:/sbin SYSTEMD_UNIT_PATH={_UNIT_PATH} {start}"]


def _remove(group: Path) -> None:
    """Remove a control group with those below it, once the kernel has cleared them."""

    def gone() -> bool:
        for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        group.rmdir()
        return True

    def removed() -> bool:
        try:
            return gone()
        except OSError:
            return False

    eventually(removed, f"{group} is empty")


def install_application(systemd: Systemd, name: str, files: Mapping[str, str]) -> None:
    """What ``python3 -m venv`` and ``pip install`` in /srv/<name> come to: the packages of the tests' own environment."""
    folder = f"/srv/{name}"
    library = f"{folder}/.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    script = [f"#!{folder}/.venv/bin/python", "from taskq.__main__ import main", "main()"]
    commands = [
        f"mkdir -p {folder}/.venv/bin {library}",
        f"printf 'home = {PYTHON}/bin\\n' >{folder}/.venv/pyvenv.cfg",
        f"ln -s {PYTHON}/bin/python3 {folder}/.venv/bin/python",
        f"printf '%s\\n' {CHECKOUT} {PACKAGES} >{library}/tests.pth",
        f"printf '%s\\n' {shlex.join(script)} >{folder}/.venv/bin/taskq",
        f"chmod 755 {folder}/.venv/bin/taskq",
        *(f"printf %s {shlex.quote(text)} >{folder}/{file}" for file, text in files.items()),
    ]
    systemd.run(" && ".join(commands))
