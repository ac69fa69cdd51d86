"""What is read out of a black box."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from taskq.workers import blackbox


@pytest.fixture
def box() -> Iterator[int]:
    descriptor = blackbox.create()
    yield descriptor
    os.close(descriptor)


def test_a_box_is_empty_at_first(box: int) -> None:
    assert blackbox.read(box) == ""


def test_reading_does_not_move_the_place_where_the_child_writes(box: int) -> None:
    os.write(box, b"one\n")
    assert blackbox.read(box) == "one"
    os.write(box, b"two\n")
    assert blackbox.read(box) == "one\ntwo"


def test_bytes_that_are_no_text_are_replaced(box: int) -> None:
    os.write(box, b"File \xff in f")
    assert blackbox.read(box) == "File \N{REPLACEMENT CHARACTER} in f"


def test_of_a_long_text_the_end_is_kept(box: int) -> None:
    os.write(box, b"first" + b"." * blackbox.LONGEST_TEXT + b"last")
    text = blackbox.read(box)
    assert text.startswith("… .")
    assert text.endswith(".last")
    assert len(text) == blackbox.LONGEST_TEXT + 2
