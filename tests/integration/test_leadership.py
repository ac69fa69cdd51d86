"""Who leads of several schedulers, and since when nobody has been missing. Clocks are the test's; the ledger is a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.results.ledger import Ledger
from taskq.results.sqlite import SqliteResults
from taskq.workers.leader import GAP, LEASE, RENEW, STALE, Leadership

START = 1_800_000_000.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    store = SqliteResults(f"sqlite:///{tmp_path}/ledger.db", 60.0)
    assert store.ledger is not None
    yield store.ledger
    store.close()


class One:
    """A scheduler, whose clocks go on by ``turn``."""

    def __init__(self, ledger: Ledger, at: float = 0.0) -> None:
        self.ledger = ledger
        self.leadership = Leadership("shop", "1@host", START + at)

    def turn(self, at: float, *, wall: float = 0.0) -> bool:
        """A turn after so many seconds, with the wall clock ahead by ``wall``; returns whether it leads."""
        now = START + at + wall
        self.leadership.notice(now)
        leads = self.leadership.look(self.ledger, now, at)
        self.leadership.attended_until(now)
        return leads

    @property
    def attended(self) -> float:
        return self.leadership.attended - START


def test_one_leads_and_goes_on(ledger: Ledger) -> None:
    one, other = One(ledger), One(ledger)
    for second in range(20):
        assert one.turn(second)
        assert not other.turn(second + 0.5)


def test_a_dead_leader_is_replaced_after_its_lease(ledger: Ledger) -> None:
    one, other, third = One(ledger), One(ledger), One(ledger)
    assert one.turn(0)
    assert not other.turn(0.5)
    assert not other.turn(0.5 + LEASE - 0.1)
    assert other.turn(0.5 + LEASE)
    assert not third.turn(0.6 + LEASE)


def test_one_that_comes_new_lets_a_living_leader_be(ledger: Ledger) -> None:
    one = One(ledger)
    assert one.turn(0)
    new = One(ledger, at=3.0)
    for second in range(3, 12):
        assert one.turn(second)
        assert not new.turn(second)


def test_one_that_comes_long_after_the_last_leader_leads_at_once(ledger: Ledger) -> None:
    assert One(ledger).turn(0)
    assert One(ledger, at=STALE + 1).turn(STALE + 1)


def test_who_resigns_is_replaced_at_once(ledger: Ledger) -> None:
    one, other = One(ledger), One(ledger)
    assert one.turn(0)
    one.leadership.resign(ledger, START)
    assert one.leadership.fence is None
    assert other.turn(0.1)


def test_a_replaced_leader_learns_it_and_its_fence_is_down(ledger: Ledger) -> None:
    one, other = One(ledger), One(ledger)
    assert one.turn(0)
    fence = one.leadership.fence
    assert fence is not None
    assert ledger.swap([fence])
    other.turn(0)
    assert other.turn(LEASE)
    assert not ledger.swap([fence])
    assert not one.turn(LEASE + 1)
    assert one.leadership.fence is None


def test_a_leader_in_doubt_asks_before_it_is_due(ledger: Ledger) -> None:
    one, other = One(ledger), One(ledger)
    assert one.turn(0)
    other.turn(0)
    assert other.turn(LEASE)
    one.leadership._renew_at = 100.0
    assert one.turn(LEASE + 0.1)
    one.leadership.doubt()
    assert not one.turn(LEASE + 0.2)


def test_clocks_that_differ_do_not_unseat_anybody(ledger: Ledger) -> None:
    one, other = One(ledger), One(ledger)
    for second in range(20):
        assert one.turn(second, wall=-30.0)
        assert not other.turn(second)


def test_a_change_of_leaders_is_no_gap(ledger: Ledger) -> None:
    one, other = One(ledger), One(ledger)
    for second in range(30):
        assert one.turn(second)
        other.turn(second)
    late = One(ledger, at=31.0)
    assert not late.turn(31.0)
    assert late.turn(31.0 + LEASE)
    assert late.attended == 0.0, "it was not up itself, but it takes over as soon as one can"


def test_after_a_downtime_attendance_begins_anew(ledger: Ledger) -> None:
    assert One(ledger).turn(0)
    late = One(ledger, at=GAP + 5)
    assert not late.turn(GAP + 5)
    assert late.turn(GAP + 5 + LEASE)
    assert late.attended == GAP + 5


def test_after_a_resignation_only_one_that_was_up_goes_on_without_a_gap(ledger: Ledger) -> None:
    one, standby = One(ledger), One(ledger, at=1.0)
    assert one.turn(0)
    assert not standby.turn(2.0)
    one.leadership.resign(ledger, START + 2.5)
    late = One(ledger, at=3.0)
    assert late.turn(3.0)
    assert late.attended == 3.0
    late.leadership.resign(ledger, START + 3.5)
    assert standby.turn(4.0)
    assert standby.attended == 1.0, "the one before it had missed nothing since 3.0, and it was up itself since 1.0"


def test_a_leader_that_slept_or_whose_clock_was_set_forward_has_a_gap(ledger: Ledger) -> None:
    one = One(ledger)
    assert one.turn(0)
    assert one.turn(GAP - 1)
    assert one.attended == 0.0
    assert one.turn(3 * GAP)
    assert one.attended == 3 * GAP
    assert one.turn(3 * GAP + RENEW, wall=3600.0)
    assert one.attended == 3 * GAP + RENEW + 3600.0


def test_a_clock_that_is_set_back_makes_nothing_missed(ledger: Ledger) -> None:
    one = One(ledger)
    assert one.turn(0)
    assert one.turn(RENEW, wall=-3600.0)
    assert one.attended == RENEW - 3600.0


def test_applications_do_not_get_in_each_others_way(ledger: Ledger) -> None:
    assert One(ledger).turn(0)
    assert Leadership("blog", "1@host", START).look(ledger, START, 0.0)
