"""What the doctor makes of facts that are hard to provoke."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from taskq.config import load
from taskq.doctor.backend import clock, durability
from taskq.doctor.finding import Finding
from taskq.doctor.machine import file_system, kept, public, satisfies
from taskq.doctor.settings import odd
from taskq.results.store import Condition

MOUNTS = r"""
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:25 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 21 0:40 / /srv rw,relatime shared:7 - nfs4 host:/export rw,vers=4.2
32 31 254:1 / /srv/local\040disk rw - xfs /dev/vdb rw
33 21 0:41 / /srv2 rw - btrfs /dev/vdc rw
34 30 0:42 / /dev/shm rw - ramfs ramfs rw
""".strip()


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib", "ext4"),
        ("/srv/shop", "nfs4"),
        ("/srv/local disk/shop", "xfs"),
        ("/srv2", "btrfs"),
        ("/dev/shm", "ramfs"),
    ],
)
def test_the_file_system_of_a_folder(folder: str, kind: str) -> None:
    assert file_system(Path(folder), MOUNTS) == kind


def test_the_file_system_of_this_machine_and_of_one_that_does_not_tell() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path("/proc"), "") == ""


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        *((kind, "ok") for kind in ("ext4", "xfs", "btrfs", "")),
        *((kind, "error") for kind in ("nfs", "nfs4", "cifs", "9p", "fuse.sshfs")),
        *((kind, "warning") for kind in ("tmpfs", "overlay")),
    ],
)
def test_where_an_sqlite_file_is_safe(kind: str, level: str) -> None:
    assert kept("broker", Path("/srv/shop.db"), kind).level == level


@pytest.mark.parametrize(
    ("version", "requirement", "good"),
    [
        ("5.7.0", "kombu<5.8,>=5.7", True),
        ("5.8.0", "kombu<5.8,>=5.7", False),
        ("5.6.9", "kombu<5.8,>=5.7", False),
        ("5.10", "kombu>=5.7", True),
        ("5.7.1rc1", "kombu<5.8,>=5.7", True),
        ("8", "click>=8.1", False),
        ("3.2.13", "psycopg[binary]>=3.2.13; extra == 'postgres'", True),
        ("1", "tzdata", True),
        ("9.0", "redis>=5; python_version < '4'", True),
    ],
)
def test_versions_within_bounds(version: str, requirement: str, good: bool) -> None:
    assert satisfies(version, requirement) is good


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"grace": 90}, "grace"),
        ({"concurrency": 9}, "concurrency"),
        ({"result_ttl": 5}, "result_ttl"),
        ({"broker": "amqp://h//", "heartbeat": 0}, "heartbeat"),
        ({"broker": "amqp://h//", "delivery_limit": 20}, "delivery_limit"),
        ({"publish_timeout": 0.1}, "publish_timeout"),
    ],
)
def test_settings_that_are_odd(keywords: dict[str, Any], name: str) -> None:
    (found,) = odd(load({"concurrency": 2, **keywords}, environment={}), in_kubernetes=False, processors=2)
    assert (found.level, found.text.partition("=")[0]) == ("warning", name)
    assert "(keyword)" in found.text
    assert found.mend


def test_settings_that_are_in_order() -> None:
    settings = load({"concurrency": 8, "grace": 60, "heartbeat": 0, "delivery_limit": 20}, environment={})
    assert list(odd(settings, in_kubernetes=False, processors=2)) == []
    (found,) = odd(settings, in_kubernetes=True, processors=2)
    assert "Kubernetes kills after 30 s" in found.text
    off = load({"concurrency": 2, "backend": "off", "result_ttl": 5}, environment={})
    assert list(odd(off, in_kubernetes=False, processors=2)) == []


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.01, "ok"), (-1.9, "ok"), (3.0, "warning"), (-59.0, "warning"), (61.0, "error"), (-3600.0, "error")]
)
def test_clocks_that_differ(ahead: float, level: str) -> None:
    (found,) = clock(Condition(product="Redis", version="7", ahead=ahead))
    assert found.level == level
    assert ("ahead of" if ahead > 0 else "behind") in found.text


def test_one_clock_cannot_differ_from_itself() -> None:
    assert list(clock(Condition(product="SQLite", version="3"))) == []


@pytest.mark.parametrize(
    ("product", "options", "found"),
    [
        ("Redis", {"maxmemory_policy": "noeviction", "maxmemory": "0", "aof_enabled": "1"}, []),
        ("Redis", {"maxmemory_policy": "allkeys-lru", "maxmemory": "0", "aof_enabled": "1"}, ["warning"]),
        ("Redis", {"maxmemory_policy": "volatile-ttl", "maxmemory": "1000", "aof_enabled": "0"}, ["error", "warning"]),
        ("Redis", {}, []),
        ("PostgreSQL", {"fsync": "on", "synchronous_commit": "local"}, []),
        ("PostgreSQL", {"fsync": "off", "synchronous_commit": "off"}, ["warning", "warning"]),
        ("SQLite", {}, []),
    ],
)
def test_servers_that_forget(product: str, options: dict[str, str], found: list[str]) -> None:
    assert levels(durability(Condition(product=product, version="1", options=options))) == found


def test_a_file_that_everybody_can_read(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    assert not list(public("broker", path)), "it is not there yet"
    path.touch()
    for mode, levels in ((0o600, []), (0o660, []), (0o644, ["warning"])):
        path.chmod(mode)
        assert [finding.level for finding in public("broker", path)] == levels
