"""Descriptions of what an application raises and returns: text that can always be had, encoded and carried.

An exception is the application's code. Asked for its text, it may raise, recurse, return something that is no text, or ten
megabytes with half of a character in it. What comes out here is text that UTF-8 can carry, of so many bytes at most, and
nothing raised by the application comes out at all.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

#: The longest text and the longest traceback, in bytes.
LONGEST_TEXT = 2_000
LONGEST_TRACEBACK = 65_536
#: The longest traceback in a message's headers, in bytes: all headers have to fit into one frame of AMQP, 131,072 bytes.
LONGEST_IN_HEADERS = 16_384
#: An exception that others caused, or that consists of others, is shown with them up to so many.
MOST_EXCEPTIONS = 200
#: Groups of groups are shown up to this depth; Python's own rendering recurses, and shows ten of them.
DEEPEST_GROUP = 20
_MOST_FRAMES = 1_000
_CUT = "…"


def bounded(text: str, most: int = LONGEST_TEXT) -> str:
    """The text as UTF-8 can carry it, in ``most`` bytes: lone surrogates are escaped, and the end is cut off."""
    if type(text) is str and len(text) <= most and text.isascii():
        return text
    raw = text[:most].encode("utf-8", "backslashreplace")
    if len(raw) <= most and len(text) <= most:
        return raw.decode()
    return raw[: most - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def shortened(text: str, most: int) -> str:
    """The text as ``bounded`` makes it, but cut in the middle: a traceback's beginning and its end say most."""
    if len(text) <= most and len(raw := text.encode("utf-8", "backslashreplace")) <= most:
        return raw.decode()
    mark = f"\n{_CUT}\n"
    head = most // 4
    tail = most - head - len(mark.encode())
    first = text[:head].encode("utf-8", "backslashreplace")[:head].decode("utf-8", "ignore")
    last = text[-tail:].encode("utf-8", "backslashreplace")[-tail:].decode("utf-8", "ignore")
    return f"{first}{mark}{last}"


def repr_of(value: Any, most: int = LONGEST_TEXT) -> str:
    """``repr`` of anything."""
    return _told(repr, value, most)


def text_of(value: Any, most: int = LONGEST_TEXT) -> str:
    """``str`` of anything."""
    return _told(str, value, most)


def _told(tell: Callable[[Any], str], value: Any, most: int) -> str:
    try:
        # A subclass of str is the application's too: this is the plain text in it.
        return bounded(str.__str__(tell(value)), most)
    except BaseException as error:  # noqa: BLE001  # whatever the application's __repr__ raises, it is asked in passing
        return f"<{name_of(type(value))}, whose {tell.__name__}() raised {name_of(type(error))}>"


def name_of(kind: type) -> str:
    """A class' qualified name."""
    # Past whatever the class' own class makes of it.
    name = type.__dict__["__qualname__"].__get__(kind)
    return bounded(str.__str__(name), 200)


def module_of(kind: type) -> str:
    """The name of the module that a class is from."""
    try:
        name = str.__str__(kind.__module__)
    except BaseException:  # noqa: BLE001  # the class' own class may answer, and is the application's
        name = ""
    return bounded(name, 200)


def args_of(error: BaseException) -> tuple[Any, ...]:
    """What its class would have to be called with to make the exception again, as far as it is known."""
    args: tuple[Any, ...] = BaseException.__dict__["args"].__get__(error)
    if isinstance(error, OSError) and len(args) == 2:  # the errno and its text; the names have been taken out
        names = tuple(OSError.__dict__[name].__get__(error) for name in ("filename", "filename2"))
        if names[1] is not None:
            return (*args, names[0], None, names[1])
        if names[0] is not None:
            return (*args, names[0])
    return args


def traceback_of(error: BaseException, most: int = LONGEST_TRACEBACK) -> str:
    """The traceback as Python prints it, causes included where there are not too many of them."""
    try:
        if _is_simple(error):
            return shortened("".join(traceback.format_exception(error)), most)
    except BaseException:  # noqa: BLE001, S110  # rendering asks the application's exceptions and loaders; there is a plainer way
        pass
    return shortened(f"{_frames_of(error.__traceback__)}{name_of(type(error))}: {text_of(error)}\n", most)


def _frames_of(trace: TracebackType | None) -> str:
    try:
        frames = "".join(traceback.format_tb(trace, -_MOST_FRAMES))
    except BaseException as failed:  # noqa: BLE001  # the sources are read by the application's loaders
        return f"<a traceback that cannot be shown: {name_of(type(failed))}>\n"
    return f"Traceback (most recent call last):\n{frames}" if frames else ""


def _is_simple(error: BaseException) -> bool:
    """Whether Python renders the exception, with all that it hangs together with, in reasonable time and depth."""
    waiting, seen = [(error, 0)], {id(error)}
    while waiting:
        current, depth = waiting.pop()
        parts = current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        inner = [(part, depth + 1) for part in itertools.islice(parts, MOST_EXCEPTIONS)]
        others = [(other, depth) for other in (current.__cause__, current.__context__) if other is not None]
        for other in (*inner, *others):
            if id(other[0]) not in seen:
                seen.add(id(other[0]))
                waiting.append(other)
        if len(seen) > MOST_EXCEPTIONS or depth > DEEPEST_GROUP:
            return False
    return True
