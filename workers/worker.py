"""A worker's start: what ``taskq worker`` does before the supervisor's loop, and with which exit code it ends."""

from __future__ import annotations

import os
import select
import socket
from typing import Any

import msgspec

from taskq import TaskQ, log
from taskq.config import masked
from taskq.errors import ConfigurationError
from taskq.workers.children import Children
from taskq.workers.launcher import Death, Launcher
from taskq.workers.obituary import Register
from taskq.workers.scheduler import Scheduler
from taskq.workers.supervisor import Supervisor
from taskq.workers.wakeup import Signals
from taskq.workers.zygote import Failed, Ready

#: The most children that one worker may have: its notes are laid out once.
MOST_CHILDREN = 1024

logger = log.get_logger("taskq.supervisor")


def run_worker(spec: str, command_line: dict[str, Any]) -> int:
    """Run a worker for the application at ``spec`` (``module:app``) until it is told to stop; returns its exit code."""
    signals = Signals()
    worker = f"{os.getpid()}@{socket.gethostname()}"
    register = Register(MOST_CHILDREN)
    settings_text = msgspec.json.encode(command_line).decode()

    def launch() -> Launcher:
        return Launcher(spec, settings_text, register.descriptor, worker)

    launcher = launch()
    ready = await_application(launcher, signals)
    if ready is None:
        # It would only look once the import is over, and an import holds nothing that could be lost.
        launcher.close(0.0)
        return 0
    settings = ready.settings
    log.configure(settings.log_format, settings.log_level)
    if ready.start_method != settings.start_method:
        logger.warning("start_method_changed", wanted=settings.start_method, used=ready.start_method, threads=ready.threads)
    queues = settings.queue_names or ready.queues
    logger.info(
        "worker_started",
        worker=worker,
        broker=masked(settings.broker),
        backend=masked(settings.backend),
        queues=list(queues),
        tasks=ready.tasks,
        children=settings.concurrency,
        start_method=ready.start_method,
    )
    supervisor = Supervisor(settings, queues, worker, register, signals, ready.routes)
    children = Children(supervisor.slots, launcher, launch, supervisor)
    scheduler = start_scheduler(ready, worker)
    code = supervisor.run(children)
    if scheduler is not None:
        scheduler.stop()
    register.close()
    if supervisor.fatal is not None:
        raise supervisor.fatal
    return code


def start_scheduler(ready: Ready, worker: str) -> Scheduler | None:
    """Begin to see to the application's schedules, where there are any and the settings do not leave it to others."""
    if not ready.schedules or not ready.settings.scheduler:
        return None
    scheduler = Scheduler(ready.settings, ready.app, ready.schedules, ready.routes, worker)
    scheduler.start()
    return scheduler


def run_scheduler(app: TaskQ) -> int:
    """See to the application's schedules, and nothing else, until SIGTERM or SIGINT; returns the exit code."""
    signals, settings = Signals(), app.settings
    log.configure(settings.log_format, settings.log_level)
    worker = f"{os.getpid()}@{socket.gethostname()}"
    scheduler = Scheduler(settings, app.name, app.schedules.values(), app.routes(), worker)
    scheduler.start()
    while not signals.received:
        select.select([signals.wake], [], [])
        signals.wake.recv(4096)
    scheduler.stop()
    return 0


def await_application(launcher: Launcher, signals: Signals) -> Ready | None:
    """Wait until the zygote has imported the application; None if a signal came first. Raises ``ConfigurationError``."""
    while not signals.received:
        readable, _, _ = select.select([launcher.fileno(), signals.wake.fileno()], [], [])
        if launcher.fileno() not in readable:
            continue
        for report in launcher.reports():
            match report:
                case Ready():
                    return report
                case Failed(error=error):
                    raise ConfigurationError(error)
        if launcher.lost:
            status = launcher.process.wait()
            died = Death(signal=-status) if status < 0 else Death(exit_code=status)
            raise ConfigurationError(f"the process that imports the application died of {died}; see what it wrote above")
    return None
