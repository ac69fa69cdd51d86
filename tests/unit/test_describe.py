"""Whatever an application raises can be told, in bounded text that UTF-8 can carry."""

from __future__ import annotations

import urllib.error
from email.message import Message
from typing import Any

import pytest

from taskq.describe import LONGEST_TRACEBACK, args_of, bounded, module_of, name_of, repr_of, shortened, text_of, traceback_of


class Broken(Exception):
    def __repr__(self) -> str:
        raise SystemExit

    __str__ = __repr__


class Endless(Exception):
    def __repr__(self) -> str:
        return repr(self)


class NoText(Exception):
    def __str__(self) -> Any:
        return 5  # noqa: PLE0307  # that is what is tried


class Odd(type):
    def __getattribute__(cls, name: str) -> Any:
        raise SystemExit


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("deep")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def chained(length: int) -> BaseException:
    error = ValueError("first")
    for _ in range(length):
        error, last = ValueError("next"), error
        error.__cause__ = last
    return error


def circle() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


@pytest.mark.parametrize(
    "error",
    [
        Broken(),
        Endless(),
        NoText(),
        ValueError(Broken()),
        ValueError("caf\udce9"),
        ValueError("y" * 1_000_000),
        nested(500),
        chained(10_000),
        circle(),
        ExceptionGroup("wide", [ValueError("x")] * 10_000),
        Odd("Strange", (Exception,), {})("x"),
    ],
    ids=["repr", "recursion", "no text", "argument", "surrogate", "long", "deep", "chain", "circle", "wide", "class"],
)
def test_any_exception_can_be_told(error: BaseException) -> None:
    for text in (repr_of(error), text_of(error), name_of(type(error)), module_of(type(error))):
        assert len(text.encode()) <= 2_000
    trace = traceback_of(error)
    assert 0 < len(trace.encode()) <= LONGEST_TRACEBACK
    assert name_of(type(error)) in trace


def test_text_is_cut_in_bytes_and_whole_characters() -> None:
    assert bounded("short") == "short"
    assert bounded("错" * 1000, 100) == "错" * 32 + "…"
    assert bounded("caf\udce9") == "caf\\udce9"
    assert bounded("\udce9" * 1000, 100).encode()


def test_a_traceback_is_cut_in_the_middle() -> None:
    text = shortened("a" * 1000 + "z" * 1000, 100)
    assert (text[:1], text[-1:], len(text.encode()) <= 100) == ("a", "z", True)


def test_the_names_of_an_error_of_the_system_are_among_its_arguments() -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        open("/no/such/file")  # noqa: SIM115  # what an application writes
    assert args_of(raised.value) == (2, "No such file or directory", "/no/such/file")
    assert args_of(OSError(1, "no", "a", None, "b")) == (1, "no", "a", None, "b")
    assert args_of(OSError("no")) == ("no",)
    assert args_of(urllib.error.HTTPError("http://x", 404, "gone", Message(), None)) == ()
