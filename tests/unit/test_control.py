"""Control entries: what stands after them, whatever else somebody wrote among them."""

from __future__ import annotations

import time

import pytest

from taskq.control import REVOKED_SECONDS, Pause, Resume, Revoke, Standing, decode, encode


@pytest.mark.parametrize(
    "data",
    [b"\xe9", b"", b"[" * 100_000, b'{"type":"revoke"}', b'{"type":"revoke","id":"\xe9"}', b'{"type":"pause","queue":5}'],
)
def test_what_is_no_entry_is_passed_over(data: bytes) -> None:
    assert decode(data) is None


def test_later_entries_win() -> None:
    standing = Standing()
    entries = [Revoke("a"), Pause("mail"), Pause("slow"), Resume("mail")]
    standing.fold(entry for control in entries if (entry := decode(encode(control))) is not None)
    assert (set(standing.revoked), standing.paused) == ({"a"}, {"slow"})


def test_revocations_that_brokers_have_forgotten_are_forgotten() -> None:
    standing, now = Standing(), time.time()
    standing.fold([Revoke("old", at=now - REVOKED_SECONDS - 1), Revoke("new", at=now)])
    standing.fold([Pause("mail"), Pause("sms"), Resume("mail")])
    assert set(standing.revoked) == {"new"}
    assert standing.paused == {"sms"}
