"""The watcher: notices that the application's source has changed, for ``--reload``. A thread waits for it; the loop acts."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from taskq import log
from taskq.errors import ConfigurationError

logger = log.get_logger("taskq.reload")


class Watcher:
    """Calls ``changed``, in another thread, whenever a Python file in one of the folders was saved, made or removed.

    Raises ``ConfigurationError`` where the package that watches is not installed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        if importlib.util.find_spec("watchfiles") is None:
            raise ConfigurationError(
                "--reload needs the package 'watchfiles', which is not installed: pip install 'taskq-core[reload]'"
            )
        self._changed = changed
        self._folders: Sequence[str] = ()
        self._ended = threading.Event()

    def watch(self, folders: Sequence[str]) -> None:
        """Watch these folders, and everything in them, instead of those before."""
        if folders == self._folders:
            return
        self.close()
        self._folders, self._ended = folders, threading.Event()
        threading.Thread(target=self._watch, args=(folders, self._ended), name="taskq-watcher", daemon=True).start()
        logger.info("source_watched", folders=list(folders))

    def close(self) -> None:
        """Watch no more; the thread ends by itself."""
        self._ended.set()

    def _watch(self, folders: Sequence[str], ended: threading.Event) -> None:
        import watchfiles

        ignore, only = {"ignore_permission_denied": True, "raise_interrupt": False}, watchfiles.PythonFilter()
        try:
            for changes in watchfiles.watch(*folders, watch_filter=only, stop_event=ended, **ignore):
                for _, path in changes:
                    _forget_compiled(path)
                self._changed()
        except (OSError, RuntimeError) as error:
            logger.error("source_not_watched", error=str(error), help="SIGHUP has the worker take new code in all the same")


def _forget_compiled(path: str) -> None:
    """Remove what the file was compiled to: two versions of a second and a size would be taken for the same."""
    with suppress(FileNotFoundError, NotImplementedError):
        os.unlink(importlib.util.cache_from_source(path))
