"""A worker's start: what ``taskq worker`` does before the supervisor's loop, and with which exit code it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import uuid
from typing import Any

import msgspec

from taskq import TaskQ, log
from taskq.config import http_address, masked
from taskq.errors import ConfigurationError, TaskqError
from taskq.workers import streams
from taskq.workers.children import MOST_CHILDREN, Children
from taskq.workers.commands import About
from taskq.workers.descriptors import make_room
from taskq.workers.health import Health
from taskq.workers.launcher import Death, Launcher
from taskq.workers.notify import Notifier
from taskq.workers.obituary import Register
from taskq.workers.reaper import Reaper
from taskq.workers.reload import Reloader, consumed
from taskq.workers.remote import Remote
from taskq.workers.scheduler import Scheduler, Timetable
from taskq.workers.supervisor import Supervisor
from taskq.workers.upkeep import Upkeep
from taskq.workers.wakeup import Signals
from taskq.workers.watcher import Watcher
from taskq.workers.web import Server
from taskq.workers.zygote import Failed, Ready

logger = log.get_logger("taskq.supervisor")


def run_worker(spec: str, command_line: dict[str, Any]) -> int:
    """Run a worker for the application at ``spec`` (``module:app``) until it is told to stop; returns its exit code."""
    streams.open_missing()
    reaper = Reaper()
    signals, notifier = Signals(requests=True, reap=reaper.reap), Notifier.take(os.environ)
    worker, folder = worker_name(), working_folder()
    register = Register(MOST_CHILDREN)
    settings_text = msgspec.json.encode(command_line).decode()

    def launch() -> Launcher:
        launcher = Launcher(spec, settings_text, register.descriptor, worker, folder)
        reaper.spare(launcher.process)
        return launcher

    try:
        launcher = launch()
    except OSError as error:
        raise TaskqError(f"the process that imports the application could not be started: {error}") from None
    ready = await_application(launcher, signals)
    if ready is None:
        # It would only look once the import is over, and an import holds nothing that could be lost.
        launcher.close(0.0)
        return 0
    settings = ready.settings
    log.configure(settings.log_format, settings.log_level)
    make_room(settings.concurrency)
    if register.trouble:
        logger.warning("no_obituaries", error=register.trouble)
    if ready.start_method != settings.start_method:
        causes = {"threads": ready.threads, "connections": list(ready.connections)}
        logger.warning("start_method_changed", wanted=settings.start_method, used=ready.start_method, **causes)
    watcher = Watcher(lambda: signals.request(signal.SIGHUP)) if settings.reload else None
    queues = consumed(ready)
    logger.info(
        "worker_started",
        worker=worker,
        broker=masked(settings.broker),
        backend=masked(settings.backend),
        queues=list(queues),
        tasks=len(ready.tasks),
        children=settings.concurrency,
        start_method=ready.start_method,
    )
    supervisor = Supervisor(settings, queues, worker, register, signals, ready.routes, notifier)
    supervisor.children = Children(supervisor.slots, supervisor.new_slot, launcher, launch, supervisor)
    server = start_server(supervisor)
    reloader = Reloader(supervisor, ready, launch, worker, watcher)
    remote = start_remote(ready, supervisor)
    upkeep = Upkeep(settings)
    upkeep.start()
    reaper.watch()
    code = supervisor.run(reloader)
    for thread in (remote, server, upkeep):
        if thread is not None:
            thread.stop()
    reloader.stop_scheduler()
    register.close()
    if supervisor.fatal is not None:
        raise supervisor.fatal
    return code


def worker_name() -> str:
    """What this process is called in records, logs and remote control: in a container, each of them is process 1."""
    return f"taskq@{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:4]}"


def start_remote(ready: Ready, supervisor: Supervisor) -> Remote | None:
    """Begin to hear commands, unless the settings forbid it."""
    if not ready.settings.remote_control:
        return None
    about = About(
        supervisor.worker, ready.app, ready.settings, supervisor.queues, ready.start_method, supervisor.vitals.started_at
    )
    remote = Remote(about, supervisor.desk, supervisor.settler.tap)
    remote.start()
    return remote


def working_folder() -> str:
    """The working directory by the name that it was entered by: a link such as ``current`` may lead elsewhere later."""
    by_name = os.environ.get("PWD", "")
    return by_name if os.path.isdir(by_name) and os.path.samefile(by_name, ".") else os.getcwd()


def start_server(supervisor: Supervisor) -> Server | None:
    """Begin to answer probes at the address of the setting ``http``, where there is one. Raises ``ConfigurationError``."""
    if not supervisor.settings.http:
        return None
    # The library costs memory that a worker nobody asks can do without.
    from taskq.workers.metrics import Metrics

    metrics = Metrics(supervisor.vitals, supervisor.watchdog.depths)
    server = Server(*http_address(supervisor.settings.http), Health(supervisor.vitals, metrics.answer).answer)
    server.start()
    return server


def run_scheduler(app: TaskQ) -> int:
    """See to the application's schedules, and nothing else, until SIGTERM or SIGINT; returns the exit code."""
    signals, notifier, settings = Signals(), Notifier.take(os.environ), app.settings
    log.configure(settings.log_format, settings.log_level)
    worker = worker_name()
    timetable = Timetable(settings, list(app.schedules.values()), app.routes())
    if not timetable.schedules:
        raise ConfigurationError("the application has no schedules; app.schedule(...) makes one")
    scheduler = Scheduler(app.name, timetable, worker)
    server = None
    if settings.http:
        # Only here, since it costs memory; as for workers.
        from taskq.workers.scheduler_health import SchedulerHealth

        server = Server(*http_address(settings.http), SchedulerHealth(scheduler).answer)
        server.start()
    scheduler.start()
    notifier.ready()
    while not signals.received:
        select.select([signals.wake], [], [])
        signals.wake.recv(4096)
    notifier.stopping()
    scheduler.stop()
    if server is not None:
        server.stop()
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
