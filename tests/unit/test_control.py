"""What operators have said, folded."""

from __future__ import annotations

import time

from taskq.control import REVOKED_SECONDS, Pause, Resume, Revoke, Standing


def test_revocations_that_brokers_have_forgotten_are_forgotten() -> None:
    standing, now = Standing(), time.time()
    standing.fold([Revoke("old", at=now - REVOKED_SECONDS - 1), Revoke("new", at=now)])
    standing.fold([Pause("mail"), Pause("sms"), Resume("mail")])
    assert set(standing.revoked) == {"new"}
    assert standing.paused == {"sms"}
