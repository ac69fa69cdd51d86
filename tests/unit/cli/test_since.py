"""``--since``: moments, and how long ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from taskq.cli.since import since

CONTEXT, OPTION = click.Context(click.Command("any")), click.Option(["--since"])


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("0s", timedelta()),
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1.5h", timedelta(hours=1.5)),
        ("3d", timedelta(days=3)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_how_long_ago(text: str, ago: timedelta) -> None:
    before = datetime.now(UTC)
    moment = since(CONTEXT, OPTION, text)
    assert moment is not None
    assert before <= moment + ago <= datetime.now(UTC)


def test_moments() -> None:
    assert since(CONTEXT, OPTION, None) is None
    assert since(CONTEXT, OPTION, "2026-11-22T08:00:00+02:00") == datetime(2026, 11, 22, 6, tzinfo=UTC)
    assert since(CONTEXT, OPTION, "2026-11-22T08:00Z") == datetime(2026, 11, 22, 8, tzinfo=UTC)
    local = since(CONTEXT, OPTION, "2026-11-22")
    assert local == datetime(2026, 11, 22).astimezone()


@pytest.mark.parametrize(
    "text", ["", "yesterday", "15", "15 m", "m", "-1h", "1e3s", "٣h", "99999999999d", "2026-13-01", "0001-01-01"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no moment; write 2026-11-22T08:00, or 15m"):
        since(CONTEXT, OPTION, text)
