"""Which version of a distribution is installed here."""

from __future__ import annotations

import functools
from importlib import metadata

DISTRIBUTION = "taskq-core"


@functools.cache
def version(distribution: str = DISTRIBUTION) -> str:
    """The installed version; empty where there is none, as in a checkout that was never installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
