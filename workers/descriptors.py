"""Descriptors: how many files this process may have open, which bounds how many children it can have."""

from __future__ import annotations

import resource

from taskq.errors import ConfigurationError

#: What a supervisor has open beside what it has for its children, generously; and for each child: its pipe, black box and note.
_BESIDE, _PER_CHILD = 64, 3


def make_room(children: int) -> None:
    """Have this process open enough files for so many children; raises ``ConfigurationError`` where it may not."""
    needed = _BESIDE + _PER_CHILD * children
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"{children} children need {needed} open files, and this process may have {hard}: "
            "raise 'ulimit -n', LimitNOFILE= of the systemd unit, or have fewer children"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
