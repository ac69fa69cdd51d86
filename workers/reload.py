"""Reload: the application's new code takes over while everything goes on.

A second zygote imports the code as it is now. If that fails, or if the worker could not keep its promises with it, the old code
stays and one line says why. Otherwise new children come from the new zygote, and each old one ends after its task::

    serving ──SIGHUP──► importing ──imported, and fit──► replacing ──no task begins with the old code──► serving
       ▲                    │
       └── failed, or unfit ┘   the old code never ceased to serve

A SIGHUP while an import is under way begins it anew, because the later one may have been sent for a later change. Nothing here
needs the broker. A worker that ends reloads nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, Protocol

from taskq import log
from taskq.config import Settings
from taskq.errors import ConfigurationError, MessageError
from taskq.workers.children import Children
from taskq.workers.crashes import Coroner
from taskq.workers.custody import Custody
from taskq.workers.descriptors import make_room
from taskq.workers.launcher import Death, Launcher
from taskq.workers.limits import Limits
from taskq.workers.notify import Notifier
from taskq.workers.scheduler import Scheduler, Timetable, check
from taskq.workers.vitals import Vitals
from taskq.workers.watcher import Watcher
from taskq.workers.zygote import Failed, Ready

#: What the new code may say differently. Everything else concerns connections and queues, which a reload leaves alone.
TAKEN_OVER = frozenset(
    {
        "concurrency",
        "default_queue",
        "grace",
        "log_format",
        "log_level",
        "max_crashes",
        "max_memory_per_child",
        "max_message_bytes",
        "max_result_bytes",
        "max_tasks_per_child",
        "memory_limit",
        "prefetch",
        "publish_timeout",
        "soft_time_limit",
        "start_method",
        "time_limit",
        "unknown_task_ttl",
    }
)
#: For how long a task that ran here must not disappear from the code, in seconds; for up to twice as long, it may not.
RECENT_SECONDS = 300.0
#: How long a process whose socket is closed may take to say how it died, in seconds.
DYING_SECONDS = 0.2

logger = log.get_logger("taskq.reload")


class Host(Protocol):
    """What a reload needs of the supervisor: to be told what to listen to, and its parts, which are to follow new settings."""

    settings: Settings
    routes: Mapping[str, str]
    children: Children
    custody: Custody
    limits: Limits
    coroner: Coroner
    vitals: Vitals
    notifier: Notifier

    @property
    def stopping(self) -> bool:
        """Whether the worker ends."""

    def watch(self, what: Any, act: Callable[[], None]) -> None:
        """Have ``act`` called when ``what`` is readable."""

    def unwatch(self, what: Any) -> None:
        """Not any more."""


class Recent:
    """Which tasks' messages ended here in the last minutes: those that have been counted since one of two earlier looks."""

    def __init__(self, now: float) -> None:
        self._since: dict[str, int] = {}
        self._later: tuple[float, dict[str, int]] = (now, {})

    def look(self, vitals: Vitals, now: float) -> None:
        """Keep what is counted so far, every ``RECENT_SECONDS``."""
        at, counts = self._later
        if now - at >= RECENT_SECONDS:
            self._since, self._later = counts, (now, _ends(vitals))

    def tasks(self, vitals: Vitals, now: float) -> set[str]:
        """Those of the last ``RECENT_SECONDS``, and of the time up to twice that."""
        self.look(vitals, now)
        return {name for name, count in _ends(vitals).items() if count > self._since.get(name, 0)}


def _ends(vitals: Vitals) -> dict[str, int]:
    return {name: sum(tally.outcomes.values()) for name, tally in vitals.tallies.items()}


class Reloader:
    """Takes the application's new code in. ``ready`` is the code that serves."""

    def __init__(
        self, host: Host, ready: Ready, launch: Callable[[], Launcher], worker: str, watcher: Watcher | None = None
    ) -> None:
        self.ready = ready
        self._host = host
        self._launch = launch
        self._worker = worker
        self._watcher = watcher
        self._candidate: Launcher | None = None
        self._replacing = False
        self._began = 0.0
        self._recent = Recent(time.monotonic())
        self._scheduler: Scheduler | None = None
        self._tend(ready)

    def begin(self, now: float) -> None:
        """Somebody wants the new code."""
        if self._host.stopping:
            self._fail("the worker is stopping")
            return
        self.cancel()
        logger.info("reload_started")
        self._host.notifier.reloading(now)
        self._began = now
        try:
            self._candidate = launcher = self._launch()
        except OSError as error:
            self._fail(f"the process that would import it could not be started: {error}")
            return
        self._host.watch(launcher, lambda: self._hear(launcher))

    def cancel(self) -> None:
        """Give an import up that is under way; it holds nothing that could be lost."""
        if self._candidate is not None:
            self._host.unwatch(self._candidate)
            self._candidate.close(0.0)
            self._candidate = None

    def close(self) -> None:
        """The worker ends."""
        self.cancel()
        if self._watcher is not None:
            self._watcher.close()

    def stop_scheduler(self) -> None:
        """End the scheduler, if there is one; waits for what it has under way."""
        if self._scheduler is not None:
            self._scheduler.stop()

    def look(self, now: float) -> None:
        """Note what runs; and say so once no task begins with the old code any more."""
        self._recent.look(self._host.vitals, now)
        if self._replacing and self._host.children.renewed:
            self._replacing = False
            self._host.notifier.reloaded()
            finishing = len(self._host.children.with_old_code())
            logger.info("reloaded", seconds=round(now - self._began, 3), tasks=len(self.ready.tasks), finishing=finishing)

    def took_over(self, ready: Ready) -> None:
        """A zygote that died was replaced. What it found on the disk serves already, whether anybody asked for it or not."""
        if why := self._unfit(ready):
            logger.error("code_changed", why=why, help="a zygote that died was replaced by one that imported other code")
            return
        self._take(ready)

    def _hear(self, launcher: Launcher) -> None:
        """The zygote that imports the new code reports, or is gone."""
        try:
            reports = launcher.reports()
        except MessageError as error:
            self._fail(f"it speaks another language, as after an update of taskq itself: restart the worker ({error})")
            return
        for report in reports:
            match report:
                case Ready() if why := self._unfit(report):
                    self._fail(why)
                case Ready():
                    self._adopt(launcher, report)
                case Failed(error=why):
                    self._fail(why)
        if launcher.lost and self._candidate is launcher:
            self._host.unwatch(launcher)
            launcher.close(DYING_SECONDS)
            self._candidate = None
            status = launcher.process.returncode or 0
            died = Death(signal=-status) if status < 0 else Death(exit_code=status)
            self._fail(f"the process that imported the new code died of {died}")

    def _fail(self, why: str) -> None:
        logger.error("reload_failed", why=why, help="the old code goes on")
        self._host.notifier.reloaded()
        self.cancel()

    def _adopt(self, launcher: Launcher, ready: Ready) -> None:
        self._candidate = None
        self._host.unwatch(launcher)
        self._host.children.adopt(launcher)
        self._take(ready)
        self._replacing = True

    def _take(self, ready: Ready) -> None:
        self.ready = ready
        _follow(self._host, ready)
        self._tend(ready)

    def _tend(self, ready: Ready) -> None:
        """See to the schedules of this code, and watch its source."""
        if self._watcher is not None:
            self._watcher.watch(ready.folders)
        timetable = Timetable(ready.settings, ready.schedules, ready.routes)
        if self._scheduler is not None:
            self._scheduler.follow(timetable)
        elif ready.schedules and ready.settings.scheduler:
            self._scheduler = Scheduler(ready.app, timetable, self._worker)
            self._scheduler.start()

    def _unfit(self, new: Ready) -> str:
        """Why this worker must not go on with the new code; empty where it may."""
        return cannot_follow(self.ready, new) or self._still_needed(set(self.ready.tasks) - set(new.tasks))

    def _still_needed(self, gone: Collection[str]) -> str:
        """Why the new code must not do without these tasks; empty where nothing speaks against it.

        Known are the messages that this worker has, and the tasks that it ran of late, except while somebody develops. What
        else lies in queues, or is delayed, is not: it is given back for ``unknown_task_ttl`` before it is dead, never dropped.
        """
        if not gone:
            return ""
        custody = self._host.custody
        ran = set() if self._watcher is not None else self._recent.tasks(self._host.vitals, time.monotonic())
        held = [*custody.backlog, *custody.suspects.waiting, *custody.returned]
        held += [delivery for slot in custody.slots for delivery in slot.pending.values()]
        names = {str(custody.message(delivery).headers.get("task")) for delivery in held}
        if needed := sorted((names | ran).intersection(gone)):
            return f"the new code lacks {', '.join(needed)}, of which messages are here, or were a few minutes ago"
        return ""


def cannot_follow(old: Ready, new: Ready) -> str:
    """Why a worker that serves the old code cannot serve the new one without a restart; empty where it can."""
    before, after = set(consumed(old)), set(consumed(new))
    changed = [name for name in _changed(old.settings, new.settings) if name not in TAKEN_OVER]
    why = ""
    if new.version != old.version:
        why = f"taskq itself was updated from {old.version} to {new.version}: restart the worker"
    elif new.app != old.app:
        why = f"the app is called {new.app!r} now, not {old.app!r}: restart the worker"
    elif changed:
        why = f"the code sets {', '.join(changed)} differently, which needs a restart of the worker"
    elif lacking := _no_room(new.settings.concurrency):
        why = lacking
    elif before != after:
        named = ", ".join([*(f"+{name}" for name in sorted(after - before)), *(f"-{name}" for name in sorted(before - after))])
        why = f"the tasks name other queues ({named}), and a worker consumes those that it started with: restart it"
    elif new.schedules and new.settings.scheduler:
        try:
            check(new.settings, new.schedules)
        except ConfigurationError as error:
            why = str(error)
    return why


def _no_room(children: int) -> str:
    """Why this process cannot have so many children; empty where it can."""
    try:
        make_room(children)
    except ConfigurationError as error:
        return str(error)
    return ""


def consumed(ready: Ready) -> tuple[str, ...]:
    """The queues that a worker of this application consumes."""
    return ready.settings.queue_names or ready.queues


def _changed(old: Settings, new: Settings) -> list[str]:
    names = [field.name for field in fields(Settings) if field.name != "sources"]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _follow(host: Host, ready: Ready) -> None:
    """Have the supervisor's parts follow this code's settings."""
    before, settings = host.settings, ready.settings
    host.settings, host.routes = settings, ready.routes
    log.configure(settings.log_format, settings.log_level)
    host.custody.most_tasks = settings.max_tasks_per_child
    host.custody.pace.most = settings.prefetch
    host.coroner.max_crashes = settings.max_crashes
    host.limits.follow(settings)
    if settings.concurrency != before.concurrency:
        host.children.scale(settings.concurrency)
