"""What users give, made plain: each check returns the value that is meant, or raises ``ConfigurationError``.

``what`` names the thing in the error: an option, a parameter.
"""

from __future__ import annotations

import math
import reprlib
import sys
from datetime import timedelta
from typing import Any
from uuid import UUID

from taskq.errors import LONGEST_COUNTDOWN, ConfigurationError, WrongType

#: The longest time that an option may say, in seconds: a century. What is meant to be "never" has a word of its own.
MOST_SECONDS = LONGEST_COUNTDOWN

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80


def shown(value: Any) -> str:
    """The value as an error names it: cut, and whatever its own ``repr`` does."""
    try:
        return _brief.repr(value)
    except ValueError:  # an integer with more digits than Python writes out
        return f"a {type(value).__name__} of {sys.getsizeof(value)} bytes"


def text(what: str, value: Any) -> str:
    """The text, which every broker, backend and file can hold; a member of a ``(str, Enum)`` is its value, not its name."""
    if type(value) is str and value and value.isascii() and "\0" not in value:
        return value  # nearly all are, and each call has some
    if not isinstance(value, str):
        way_out = f"; write str({what})" if isinstance(value, UUID) else ""
        raise WrongType(f"{what} must be a str, not {shown(value)}{way_out}")
    if not value:
        raise ConfigurationError(f"{what} must not be empty")
    if not is_text(value):
        raise ConfigurationError(f"{what} is {shown(value)}, which holds what UTF-8 cannot carry, or a null character")
    return str.__str__(value)


def is_text(value: Any) -> bool:
    """Whether it is a text that every broker, backend and file can hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def number_of_seconds(value: Any) -> float | None:
    """How many seconds that is, given as a number or a ``timedelta``; None for what is neither."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    return int(number) if isinstance(number, int) else float(number)


def seconds(what: str, value: Any, *, above: float | None = None) -> float:
    """The number of seconds, which may be given as a ``timedelta``: from 0 on, or above ``above``; a century at most."""
    number = number_of_seconds(value)
    span = f"above {above:g}" if above is not None else "from 0"
    if number is not None and MOST_SECONDS < number < math.inf:
        span = f"up to {MOST_SECONDS:.0f}, a century"
    if number is None or not ((number >= 0 if above is None else number > above) and number <= MOST_SECONDS):
        raise ConfigurationError(f"{what} must be a number of seconds {span}, not {shown(value)}")
    return number


def timeout(value: Any) -> float | None:
    """How many seconds to wait, given as a number from 0 or a ``timedelta``; None for ever, which a century is, too."""
    if value is None:
        return None
    number = number_of_seconds(value)
    if number is None:
        raise WrongType(f"a timeout must be a number of seconds, a timedelta or None, not {shown(value)}")
    if not number >= 0:
        raise ConfigurationError(f"a timeout must be a number of seconds from 0, a timedelta or None, not {shown(value)}")
    return number if number <= MOST_SECONDS else None


def truth(what: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise WrongType(f"{what} must be True or False, not {shown(value)}")
    return value
