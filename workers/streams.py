"""The standard streams of the worker's processes: always there, and never holding back what was written."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_missing() -> None:
    """Open the null device where this process has no standard stream, and make anew what the application has closed.

    Before anything else is opened: a socket that got such a number would be written to by whoever prints.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one. Inherited, as standard streams are.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def write_lines_at_once() -> None:
    """What the application prints is seen line by line, and not lost should its process be killed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def flush() -> None:
    """Write what the standard streams hold back; the application may have closed or replaced them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # nobody could be told: this is where one would be
            stream.flush()
