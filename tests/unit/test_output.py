"""Lines for standard error: they are written whole, or dropped and counted, and nobody waits for whoever does not read."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskq import output
from taskq.output import Output


def told(count: int) -> bytes:
    return b"%d dropped\n" % count


@pytest.fixture
def redirect() -> Iterator[Callable[[int], None]]:
    kept = os.dup(output.STANDARD_ERROR)

    def point(descriptor: int) -> None:
        os.dup2(descriptor, output.STANDARD_ERROR)

    yield point
    os.dup2(kept, output.STANDARD_ERROR)
    os.close(kept)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_nobody_waits_for_a_reader_that_does_not_read(redirect: Callable[[int], None], kind: str) -> None:
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        ends = socket.socketpair()
        reading, writing = (end.detach() for end in ends)
    redirect(writing)
    os.close(writing)
    lines = Output(told)
    began = time.monotonic()
    for number in range(10_000):
        lines.write(b"%06d %s\n" % (number, b"x" * 100))
    assert time.monotonic() - began < 5.0
    assert lines.dropped > 1000
    os.set_blocking(reading, False)
    read = b""
    try:
        while chunk := os.read(reading, 1 << 20):
            read += chunk
    except BlockingIOError:
        pass
    dropped = lines.dropped
    lines.write(b"there is room\n")
    read += os.read(reading, 1000)
    *kept, count, last = read.split(b"\n")[:-1]
    assert [int(line[:6]) for line in kept] == list(range(len(kept))), "whole lines, and none out of order"
    assert (count + b"\n", last) == (told(dropped), b"there is room")
    os.close(reading)
    with open(os.devnull, "wb") as nowhere:
        redirect(nowhere.fileno())
        lines.write(b"so that the socket is closed\n")


def test_a_reader_that_is_gone_costs_a_line_and_nothing_else(redirect: Callable[[int], None], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    redirect(writing)
    os.close(writing)
    lines = Output(told)
    os.close(reading)
    lines.write(b"lost\n")
    with (tmp_path / "log").open("wb") as file:
        redirect(file.fileno())
    lines.write(b"kept\n")
    assert (tmp_path / "log").read_bytes() == b"kept\n"
