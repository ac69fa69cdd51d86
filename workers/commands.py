"""The commands that a worker obeys, by Celery's names, and what it answers to each: Celery's clients and Flower read it.

They run in the thread of remote control. What they want to know or to change is the loop's, which they ask at the desk.
Whoever may write to the broker may give them, as with everything else that comes from there.
"""

from __future__ import annotations

import os
import platform
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from taskq import log
from taskq.broker import open_session
from taskq.broker.pidbox import Clock, Command
from taskq.broker.publisher import Publisher
from taskq.config import DEFAULTS, NAMES, Settings, masked
from taskq.control import Revoke
from taskq.errors import ConfigurationError, MessageError, TaskqError, UnsupportedFeature
from taskq.version import version
from taskq.workers.desk import Desk
from taskq.workers.portrait import Painter, shown, text_in
from taskq.workers.snapshot import Child, Snapshot, take
from taskq.workers.supervisor import Supervisor
from taskq.workers.tap import Held, Tap

logger = log.get_logger("taskq.remote")

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while a worker lives. ``started`` is a monotonic moment."""

    worker: str
    app: str
    settings: Settings
    queues: tuple[str, ...]
    start_method: str
    started: float


class Commands:
    """Answers commands. ``tap`` is switched on and off by them, ``beat`` sends a heartbeat."""

    def __init__(
        self, about: About, desk: Desk[Supervisor], painter: Painter, tap: Tap, clock: Clock, beat: Callable[[], None]
    ) -> None:
        self._about = about
        self._settings = about.settings
        self._desk = desk
        self._painter = painter
        self._tap = tap
        self._clock = clock
        self._publisher = Publisher(about.settings, open_session)
        inspect: dict[str, Callable[[Arguments], Any]] = {
            "ping": lambda _: {"ok": "pong"},
            "clock": lambda _: {"clock": clock.value},
            "hello": self._hello,
            "stats": self._stats,
            "status": self._status,
            "active": self._active,
            "reserved": self._reserved,
            "scheduled": lambda _: [],  # what waits for its time waits at the broker
            "registered": self._registered,
            "revoked": lambda _: list(self._snapshot().revoked),
            "active_queues": lambda _: [_queue(name) for name in about.queues],
            "query_task": self._query,
            "conf": self._conf,
            "report": lambda _: {"ok": self._report()},
        }
        control: dict[str, Callable[[Arguments], Any]] = {
            "revoke": self._revoke,
            "terminate": lambda given: self._revoke({**given, "terminate": True}),
            "shutdown": self._shutdown,
            "scale": self._scale,
            "pool_grow": lambda given: self._grow(_number(given, "n", 1)),
            "pool_shrink": lambda given: self._grow(-_number(given, "n", 1)),
            "enable_events": lambda _: self._events(on=True),
            "disable_events": lambda _: self._events(on=False),
            "heartbeat": lambda _: beat(),
        }
        self._known = {**inspect, **control}
        for alias, name in _ALIASES.items():
            self._known[alias] = self._known[name]

    def __call__(self, command: Command) -> Any:
        """What the worker says to it, once it has obeyed."""
        given = command.arguments or {}
        if given.get("app") not in (None, self._about.app):
            # Meant for the workers of another application: these have nothing to say.
            return SILENCE
        obey = self._known.get(command.method)
        try:
            if obey is None:
                raise UnsupportedFeature(_REFUSALS.get(command.method) or f"taskq has no command {shown(command.method)}")
            return obey(given)
        except TaskqError as error:
            return {"error": str(error)}

    def close(self) -> None:
        """Close the connection that revocations go through."""
        self._publisher.close()

    def _snapshot(self) -> Snapshot:
        return self._desk.ask(take)

    # What is asked

    def _hello(self, given: Arguments) -> dict[str, Any] | None:
        if given.get("from_node") == self._about.worker:
            return None
        return {"revoked": list(self._snapshot().revoked), "clock": self._clock.forward()}

    def _active(self, _: Arguments) -> list[dict[str, Any]]:
        return [self._painter.info(child.task, child) for child in self._snapshot().children if child.task is not None]

    def _reserved(self, _: Arguments) -> list[dict[str, Any]]:
        return [self._painter.info(held) for held in self._snapshot().reserved]

    def _registered(self, given: Arguments) -> list[str]:
        """The names of the tasks, each with what it says of itself in the fields that are asked for."""
        fields, known = given.get("taskinfoitems") or [], self._desk.ask(lambda supervisor: supervisor.children.launcher.facts)
        if not isinstance(fields, list) or not all(isinstance(field, str) for field in fields):
            raise MessageError(f"the argument 'taskinfoitems' is {shown(fields)}, no list of fields such as 'max_retries'")
        found = {name: [f"{field}={facts[field]}" for field in fields if field in facts] for name, facts in known.items()}
        return [f"{name} [{' '.join(told)}]" if told else name for name, told in found.items()]

    def _query(self, given: Arguments) -> dict[str, Any]:
        wanted, snapshot = frozenset(_texts(given, "ids")), self._snapshot()
        found: list[tuple[str, Held, Child | None]] = [("reserved", held, None) for held in snapshot.reserved]
        found += [("active", child.task, child) for child in snapshot.children if child.task is not None]
        infos = [(state, self._painter.info(held, child)) for state, held, child in found]
        return {info["id"]: (state, info) for state, info in infos if isinstance(info["id"], str) and info["id"] in wanted}

    def _stats(self, _: Arguments) -> dict[str, Any]:
        settings, snapshot = self._settings, self._snapshot()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "total": dict(snapshot.counts),
            "pid": os.getpid(),
            "clock": str(self._clock.value),
            "uptime": round(time.monotonic() - self._about.started),
            "pool": {
                "implementation": f"taskq:{self._about.start_method}",
                "max-concurrency": len(snapshot.children),
                "processes": [child.pid for child in snapshot.children],
                "max-tasks-per-child": settings.max_tasks_per_child or "N/A",
                "timeouts": [settings.soft_time_limit, settings.time_limit],
            },
            "broker": _broker(settings),
            "prefetch_count": snapshot.window,
            "rusage": {name.removeprefix("ru_"): getattr(usage, name) for name in dir(usage) if name.startswith("ru_")},
        }

    def _status(self, _: Arguments) -> dict[str, Any]:
        """What ``taskq status`` shows."""
        about, snapshot = self._about, self._snapshot()
        return {
            "app": about.app,
            "pid": os.getpid(),
            "version": version(),
            "state": snapshot.state,
            "uptime": round(snapshot.taken_at - about.started, 3),
            "queues": list(about.queues),
            "paused": sorted(snapshot.paused.intersection(about.queues)),
            "reserved": len(snapshot.reserved),
            "finished": snapshot.finished,
            "rate": round(snapshot.rate, 3),
            "events": self._tap.on,
            "children": [self._child(child, snapshot.taken_at) for child in snapshot.children],
        }

    def _child(self, child: Child, now: float) -> dict[str, Any]:
        described = {"slot": child.slot, "pid": child.pid, "state": child.state, "finished": child.finished, "task": None}
        if child.task is None:
            return described
        message = self._painter.message(child.task)
        task = {"id": text_in(message, "id"), "name": text_in(message, "task"), "queue": child.task.queue}
        if self._settings.show_arguments:
            task["args"], task["kwargs"] = self._painter.arguments(message)
        return {**described, "task": {**task, "seconds": round(max(0.0, now - child.since), 3)}}

    def _conf(self, given: Arguments) -> dict[str, Any]:
        everything, sources = bool(given.get("with_defaults")), self._settings.sources
        names = [name for name in NAMES if everything or sources.get(name) != "default"]
        values = {name: getattr(self._settings, name) for name in names}
        return {name: masked(value) if isinstance(value, str) else value for name, value in values.items()}

    def _report(self) -> str:
        about = {
            "software": f"taskq {version()}, kombu {version('kombu')}, Python {platform.python_version()}",
            "platform": platform.platform(),
            "worker": f"{self._about.worker}, application {self._about.app}",
            **{name: value for name, value in self._conf({}).items() if value != DEFAULTS[name]},
        }
        return "\n".join(f"{name}: {value}" for name, value in about.items())

    # What is ordered

    def _revoke(self, given: Arguments) -> dict[str, Any]:
        """Here at once, whatever the broker can keep; and for everybody else, those that are away included, durably."""
        ids, terminate = _texts(given, "task_id"), bool(given.get("terminate"))
        at_once = terminate and _signal(given.get("signal")) is signal.SIGKILL
        entries = [Revoke(task_id, terminate, time.time()) for task_id in ids]

        def obey(supervisor: Supervisor) -> None:
            now = time.monotonic()
            slots = supervisor.custody.obey(entries)
            supervisor.limits.terminate(slots, now - 60.0 if at_once else now)

        self._desk.ask(obey)
        for entry in entries:
            self._publisher.control(entry)
        return {"ok": f"terminate: {', '.join(ids)}" if terminate else f"tasks {', '.join(ids)} flagged as revoked"}

    def _shutdown(self, _: Arguments) -> dict[str, Any]:
        def stop(supervisor: Supervisor) -> None:
            if not supervisor.stopping:
                logger.warning("shutdown_ordered")
                supervisor.stop(signal.SIGTERM)

        self._desk.ask(stop)
        return {"ok": "shutting down"}

    def _scale(self, given: Arguments) -> dict[str, Any]:
        count = _number(given, "n", 0)
        return {"ok": f"{self._desk.ask(lambda supervisor: supervisor.scale(count))} children"}

    def _grow(self, by: int) -> dict[str, Any]:
        return {"ok": f"{self._desk.ask(lambda supervisor: supervisor.scale(supervisor.children.count + by))} children"}

    def _events(self, *, on: bool) -> dict[str, Any]:
        what = "enabled" if on else "disabled"
        if self._tap.on == on:
            return {"ok": f"task events already {what}"}
        logger.info("events_switched", on=on)
        self._tap.on = on
        return {"ok": f"task events {what}"}


#: How many tasks a command may name, each by an id of at most so many bytes.
MOST_IDS = 10_000
LONGEST_ID = 255
#: What a command answers that is not this worker's business.
SILENCE = object()

_ALIASES = {
    "dump_active": "active",
    "dump_reserved": "reserved",
    "dump_schedule": "scheduled",
    "dump_tasks": "registered",
    "dump_revoked": "revoked",
    "dump_conf": "conf",
}
_REFUSALS = {
    "add_consumer": "a taskq worker consumes the queues that it was started with; start another one with --queues",
    "cancel_consumer": "a taskq worker consumes the queues that it was started with; 'taskq pause QUEUE' stops all workers",
    "rate_limit": "taskq has no rate limits",
    "time_limit": "time limits belong to the task, the call or the worker's settings; they are not changed from here",
    "autoscale": "taskq has no autoscaling; 'taskq scale N' and pool_grow change the number of children",
    "pool_restart": "send the worker SIGHUP to have it load the application anew",
}


def _broker(settings: Settings) -> dict[str, Any]:
    """The broker's URL in parts, without the password, and all that Celery's monitors expect beside."""
    url = urlsplit(settings.broker)
    return {
        "hostname": url.hostname or unquote(url.path[1:]),
        "userid": url.username and unquote(url.username),
        "virtual_host": unquote(url.path[1:]) or "/",
        "port": url.port,
        "transport": url.scheme,
        "ssl": url.scheme == "amqps",
        "heartbeat": settings.heartbeat,
        "connect_timeout": settings.publish_timeout,
        "insist": False,
        "login_method": None,
        "uri_prefix": None,
        "transport_options": {},
        "alternates": [],
        "failover_strategy": None,
    }


def _queue(name: str) -> dict[str, Any]:
    """A queue as Kombu describes one."""
    exchange: dict[str, Any] = {
        "name": "",
        "type": "direct",
        "arguments": None,
        "durable": True,
        "passive": False,
        "auto_delete": False,
    }
    exchange |= {"delivery_mode": 2, "no_declare": True}
    nothing = ("queue_arguments", "binding_arguments", "consumer_arguments", "alias", "expires", "message_ttl", "max_length")
    return {
        "name": name,
        "exchange": exchange,
        "routing_key": name,
        "durable": True,
        "exclusive": False,
        "auto_delete": False,
        "no_ack": False,
        "no_declare": False,
        "bindings": [],
        **dict.fromkeys((*nothing, "max_length_bytes", "max_priority")),
    }


def _texts(given: Arguments, name: str) -> Sequence[str]:
    """One id, or several; Celery's clients send either. Raises ``MessageError``."""
    value = given.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(map(_is_id, texts)):
        raise MessageError(f"the argument {name!r} is {shown(value)}, no task id and no list of them")
    if len(texts) > MOST_IDS:
        raise MessageError(f"the argument {name!r} names {len(texts)} tasks; name at most {MOST_IDS} at once")
    return texts


def _is_id(value: Any) -> bool:
    """Whether a broker can keep what is said of this task."""
    return isinstance(value, str) and 0 < len(value.encode(errors="surrogatepass")) <= LONGEST_ID and value.isprintable()


def _number(given: Arguments, name: str, default: int) -> int:
    value = given.get(name, default)
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"the argument {name!r} must be a whole number above 0, not {shown(value)}")
    return value


def _signal(value: Any) -> signal.Signals | None:
    """A signal by number or name, with or without SIG; raises ``ConfigurationError``."""
    try:
        if isinstance(value, str):
            return signal.Signals[value if value.startswith("SIG") else f"SIG{value}"]
        return None if value is None else signal.Signals(value)
    except (KeyError, ValueError, TypeError):
        raise ConfigurationError(f"there is no signal {shown(value)}") from None
