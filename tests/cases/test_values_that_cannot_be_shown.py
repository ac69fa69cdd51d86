"""What cannot even be written down is refused in a sentence, wherever it is given."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from taskq import TaskQ
from taskq.errors import ConfigurationError

BROKER = "sqlite:////nowhere/x.db"


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


class MuteName(str):
    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class BrokenZone(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> timedelta:
        raise RuntimeError("no zone")

    dst = utcoffset

    def tzname(self, _moment: datetime | None) -> str:
        return "nowhere"


app = TaskQ("cases", broker=BROKER)


@app.task(name="add")
def add(*numbers: int) -> int:
    return sum(numbers)


@pytest.mark.parametrize("value", [10**5000, -(10**5000), Mute()], ids=["huge", "below", "mute"])
@pytest.mark.parametrize("setting", ["prefetch", "time_limit", "max_result_bytes", "log_format", "scheduler", "queues", "http"])
def test_a_setting(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=setting):
        TaskQ("cases", **{"broker": BROKER, setting: value})


@pytest.mark.parametrize("option", ["timezone", "misfire", "overlap", "jitter"])
def test_an_option_of_a_schedule(option: Any) -> None:
    mute: Any = Mute()
    with pytest.raises(ConfigurationError, match="'tick'"):
        app.schedule("tick", timedelta(seconds=5), add.s(1), **{option: mute})


CALLS: dict[str, Callable[[], Any]] = {
    "an entry": lambda: app.schedule("tick", Mute(), add.s(1)),  # type: ignore[arg-type]  # on purpose
    "a signature": lambda: app.schedule("tick", timedelta(seconds=5), Mute()),  # type: ignore[arg-type]  # on purpose
    "a header": lambda: add.apply_async((1,), headers={MuteName("id"): 1}),
    "a zone": lambda: add.apply_async((1,), eta=datetime(2030, 1, 1, tzinfo=BrokenZone())),
    "an expiry": lambda: add.apply_async((1,), expires=datetime(2030, 1, 1, tzinfo=BrokenZone())),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call(call: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        call()


def test_jitter_is_seconds_as_everywhere() -> None:
    later = TaskQ("cases", broker=BROKER)
    jittery = later.schedule("tick", timedelta(seconds=5), add.s(1), jitter=timedelta(seconds=3))
    assert (jittery.jitter, datetime.now(UTC) < jittery.next_after(datetime.now(UTC))) == (3.0, True)
