"""Decoding what others wrote: on the wire, in the pipe, in results and in controls.

Decoders differ in what they raise for bytes that nobody should have written: text that is not UTF-8, nesting without end,
numbers that fit nowhere. Here all of it is one error, which whoever reads can be sure to have caught.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from taskq.describe import text_of
from taskq.errors import MessageError

S = TypeVar("S")
T = TypeVar("T")

#: What decoders raise for bytes that cannot be read: ``UnicodeDecodeError`` is a ``ValueError`` and no ``DecodeError``.
UNREADABLE = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def decoded(decode: Callable[[S], T], data: S, what: str) -> T:
    """What ``decode`` makes of these bytes, or plain values.

    Raises ``MessageError``, which calls them ``what``, for any that it cannot read.
    """
    try:
        return decode(data)
    except UNREADABLE as error:
        raise unreadable(what, error) from None


def unreadable(what: str, error: Exception) -> MessageError:
    """The error that says why ``what`` cannot be read."""
    return MessageError(f"{what} cannot be read: {type(error).__name__}: {text_of(error)}")
