from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from taskq.results.keys import integer, key_of
from taskq.results.postgres.listener import payloads


@pytest.mark.parametrize("name", ["", "a", "Grüße", "0" * 500, "it's; --", "😀"])
def test_names_that_are_kept_as_they_are(name: str) -> None:
    assert key_of(name) == name


@pytest.mark.parametrize("name", ["\0", "a\nb", "\ud800", "0" * 501, "ä" * 251])
def test_names_that_are_kept_by_their_digest(name: str) -> None:
    assert key_of(name).startswith("sha256:")
    assert len(key_of(name)) == 71


def test_numbers_have_a_column() -> None:
    assert [integer(number) for number in (0, -5, 2**63, -(2**70))] == [0, -5, 2**63 - 1, -(2**63 - 1)]


@given(some.lists(some.text(some.characters(categories=["L", "N", "P", "S"]), max_size=120), max_size=300))
def test_notifications_tell_of_every_key_and_are_never_too_long(names: list[str]) -> None:
    keys = [key_of(name) for name in names]
    texts = payloads(keys)
    assert all(len(text.encode()) < 8000 for text in texts)
    assert [key for text in texts for key in msgspec.json.decode(text)] == keys
    assert len(texts) <= 1 + sum(len(key.encode()) + 3 for key in keys) // 3000
