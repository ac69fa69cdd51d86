"""What databases take: whatever a message says of itself, no row may be refused for it, since that would be so for ever."""

from __future__ import annotations

import hashlib

#: An index takes about 2700 bytes.
_LONGEST = 500
_MOST = 2**63 - 1


def key_of(name: str) -> str:
    """The name itself, or its digest if it is long or holds what cannot be printed: text in databases has no NUL."""
    # A character is four bytes at most.
    if name.isprintable() and (len(name) <= _LONGEST // 4 or len(name.encode()) <= _LONGEST):
        return name
    raw = name.encode("utf-8", "surrogatepass")
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def integer(number: int) -> int:
    """The number, or the nearest that there is a column for."""
    return number if -_MOST <= number <= _MOST else max(-_MOST, min(number, _MOST))
