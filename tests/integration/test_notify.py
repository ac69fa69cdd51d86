"""What systemd would be told; the test has its socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.workers.notify import Notifier
from taskq.workers.vitals import Place, Vitals
from tests.systemd import Systemd


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(tmp_path if request.param == "path" else None) as systemd:
        yield systemd


def consuming(now: float) -> Vitals:
    vitals = Vitals(now)
    vitals.places = (Place(7, True, False),)
    vitals.connected(now)
    return vitals


def test_what_is_said_in_which_order(systemd: Systemd) -> None:
    notifier, vitals = Notifier(systemd.address), Vitals(1.0)
    assert notifier.beat(1.0, vitals) is None
    notifier.reloading(1.5)
    notifier.reloaded()
    assert systemd.heard() == ["STATUS=the broker has yet to be reached"]
    vitals = consuming(2.0)
    notifier.beat(2.0, vitals)
    notifier.beat(2.1, vitals)
    assert systemd.heard() == ["READY=1", "STATUS=consuming; 0 of 1 children busy"]
    notifier.reloading(2.5)
    notifier.reloaded()
    assert systemd.heard() == ["RELOADING=1\nMONOTONIC_USEC=2500000", "READY=1"]
    vitals.draining = True
    for _ in range(2):
        notifier.stopping()
        notifier.reloaded()
        notifier.beat(3.0, vitals)
    assert systemd.heard() == ["STOPPING=1", "STATUS=it is told to end; 0 of 1 children busy"]
    notifier.close()


def test_a_sign_of_life_twice_in_each_interval_while_it_lives(systemd: Systemd) -> None:
    notifier, vitals = Notifier(systemd.address, watchdog=2.0), consuming(10.0)
    assert notifier.beat(10.0, vitals) == 11.0
    assert notifier.beat(10.9, vitals) == 11.0 + 0.15
    assert systemd.heard("WATCHDOG") == ["WATCHDOG=1"]
    assert notifier.beat(11.0, vitals) == 12.0
    assert systemd.heard("WATCHDOG") == ["WATCHDOG=1"]
    vitals.deaf = True
    assert notifier.beat(12.0, vitals) == 12.25
    assert systemd.heard("WATCHDOG") == []
    vitals.deaf = False
    notifier.beat(12.25, vitals)
    assert systemd.heard("WATCHDOG") == ["WATCHDOG=1"]
    notifier.close()


def test_the_environment_is_read_and_taken_from_the_children(systemd: Systemd) -> None:
    mine = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier.take(mine)
    assert mine == {"HOME": "/"}
    assert notifier.beat(1.0, consuming(1.0)) == 2.0
    notifier.close()
    others = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
    notifier = Notifier.take(others)
    assert notifier.beat(1.0, consuming(1.0)) is None
    notifier.close()
    nobody = Notifier.take({})
    assert nobody.beat(1.0, consuming(1.0)) is None
    nobody.stopping()


def test_a_systemd_that_does_not_read_misses_nothing_that_matters(systemd: Systemd) -> None:
    notifier = Notifier(systemd.address)
    systemd.deafen()
    notifier.beat(1.0, consuming(1.0))
    assert "READY=1" not in systemd.heard()
    notifier.beat(2.0, consuming(2.0))
    assert systemd.heard() == ["READY=1", "STATUS=consuming; 0 of 1 children busy"]
    notifier.close()


def test_a_systemd_that_is_gone_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    for now in (1.0, 2.0):
        notifier.beat(now, consuming(now))
    assert caplog.text.count("systemd_not_told") == 1
