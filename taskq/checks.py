"""What users give, made plain: each check returns the value that is meant, or raises ``ConfigurationError``.

``what`` names the thing in the error: an option, a parameter.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

from taskq.errors import LONGEST_COUNTDOWN, ConfigurationError, WrongType

#: The longest time that an option may say, in seconds: a century. What is meant to be "never" has a word of its own.
MOST_SECONDS = LONGEST_COUNTDOWN
#: What brokers, backends and files can't hold as text.
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


def text(what: str, value: Any) -> str:
    """The text; a member of a ``(str, Enum)`` is its value, not its name."""
    if not isinstance(value, str):
        raise WrongType(f"{what} must be a text, not {value!r}")
    plain = str.__str__(value)
    if not plain:
        raise ConfigurationError(f"{what} must not be empty")
    if _NOT_TEXT.search(plain):
        raise ConfigurationError(f"{what} must be text without NUL and lone surrogates, not {plain!r}")
    return plain


def seconds(what: str, value: Any, *, above: float | None = None) -> float:
    """The number of seconds, which may be given as a ``timedelta``: from 0 on, or above ``above``; a century at most."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    span = f"above {above:g}" if above is not None else "from 0"
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if is_number and MOST_SECONDS < number < math.inf:
        span = f"up to {MOST_SECONDS:.0f}, a century"
    if not (is_number and (number >= 0 if above is None else number > above) and number <= MOST_SECONDS):
        raise ConfigurationError(f"{what} must be a number of seconds {span}, not {value!r}")
    return number


def timeout(value: Any) -> float | None:
    """How many seconds to wait, given as a number from 0 or a ``timedelta``; None for ever, which a century is, too."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if number is None:
        return None
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise WrongType(f"a timeout must be a number of seconds, a timedelta or None, not {value!r}")
    if not number >= 0:
        raise ConfigurationError(f"a timeout must be a number of seconds from 0, a timedelta or None, not {value!r}")
    return number if number <= MOST_SECONDS else None


def truth(what: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise WrongType(f"{what} must be True or False, not {value!r}")
    return value
