"""A short fuzz of real workers; ``python -m tests.chaos.fuzz`` is the long one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tests.chaos.fuzz import faults, fuzz, opened

MESSAGES, KILL_EVERY = 300, 150
SEED = 11


@pytest.mark.parametrize("broker", ["sqlite", "rabbitmq"])
def test_whatever_is_sent_no_worker_ends_by_itself_and_every_good_message_has_its_result(
    broker: Literal["sqlite", "rabbitmq"], tmp_path: Path
) -> None:
    with opened(broker, tmp_path) as (stage, sender):
        seen = fuzz(stage, sender, MESSAGES, SEED, KILL_EVERY)
    assert faults(seen) == [], seen
