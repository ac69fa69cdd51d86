"""Durations for people: as many words as they need and no more."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def spelled(seconds: float) -> str:
    """The duration in its two largest units: "3 d 4 h", "12 min 5 s", "42 s"; below ten seconds "1.5 s", "20 ms"."""
    if seconds < 0.9995:
        milliseconds = max(0.0, seconds) * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    rest, parts = round(seconds), list[str]()
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(filter(None, parts[:2]))
