"""Settings: one frozen value, each setting with one name.

A setting is a keyword of ``TaskQ(...)``, an environment variable ``TASKQ_<NAME>`` and, where it concerns a command, an
option ``--<name>``. The command line wins over the environment, the environment over the keyword, the keyword over the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NewType, get_args, get_type_hints
from urllib.parse import quote, unquote

from taskq import checks
from taskq.errors import ConfigurationError
from taskq.options import queue_name, queue_names

Source = Literal["default", "keyword", "environment", "command line"]
#: A number of bytes. In settings it may also be written as text with a unit: "200M", "1.5G", "512KiB".
Size = NewType("Size", int)
BROKER_SCHEMES = ("sqlite", "amqp", "amqps")
BACKEND_SCHEMES = ("sqlite", "redis", "rediss", "redis+socket", "postgresql", "rpc")


def state_database() -> Path:
    """Where the embedded default keeps its file: the same place whatever the working directory.

    Raises ``ConfigurationError`` where the user has no home, as in many a container.
    """
    if sys.platform == "darwin":
        base = _home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state")
    return base / "taskq" / "taskq.db"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigurationError(
            f"there is no state directory: the user {os.getuid()} has no home, and HOME is not set; "
            "set XDG_STATE_HOME to a folder that the user may write to"
        ) from None


def cpu_count() -> int:
    """The processors this process may use, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _setting(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings. ``sources`` says for each where its value came from."""

    broker: str = _setting(
        "", "broker URL: sqlite:////dir/file.db, amqp:// or amqps://; empty: one SQLite file in the user's state directory"
    )
    backend: str = _setting(
        "",
        "result backend URL: sqlite:////dir/file.db, redis://, rediss://, redis+socket:///path, postgresql:// or rpc://;"
        " or 'off'; empty: the broker's file if it is SQLite, else off",
    )
    default_queue: str = _setting("default", "the queue of tasks that name none")
    publish_timeout: float = _setting(5.0, "seconds for connect, declare, publish and confirm together")
    max_message_bytes: int = _setting(1_048_576, "largest encoded message in bytes; larger ones are refused at the call")
    max_result_bytes: Size = _setting(  # noqa: RUF009  # a field, as the others
        16_777_216, "largest encoded return value in bytes (16M); a task that returns a larger one fails"
    )
    queue_type: Literal["quorum", "classic"] = _setting(
        "quorum", "RabbitMQ queue type; classic shares queues with a Celery fleet"
    )
    queue_max_priority: int = _setting(0, "x-max-priority of classic RabbitMQ queues; 0: no priorities there")
    delivery_limit: int = _setting(1000, "x-delivery-limit of quorum queues: the backstop behind max_crashes")
    result_ttl: float = _setting(86_400.0, "seconds that a result is kept, from the end of the task")
    queues: str = _setting("", "queues a worker consumes, separated by commas; empty: every queue that a task of the app names")
    concurrency: int = _setting(0, "child processes of a worker; 0: one per processor")
    scheduler: bool = _setting(True, "whether a worker also sees to the app's schedules, as 'taskq scheduler' does")
    reload: bool = _setting(False, "whether a worker takes new code in when a file of the app's is saved; for development")
    start_method: Literal["fork", "spawn"] = _setting(
        "spawn" if sys.platform == "darwin" else "fork",
        "how children start: forked from a process that imported the app, or fresh",
    )
    grace: float = _setting(25.0, "seconds that running tasks get to finish after SIGTERM or SIGINT")
    max_crashes: int = _setting(3, "how many processes a task may take down before it is dead-lettered")
    time_limit: float = _setting(
        0.0, "seconds after which a task's process is killed, unless task or call say another; 0: never"
    )
    soft_time_limit: float = _setting(
        0.0, "seconds after which SoftTimeLimitExceeded is raised in a task, unless task or call say another; 0: never"
    )
    memory_limit: Size = _setting(  # noqa: RUF009  # a field, as the others
        0, "bytes of memory (200M, 1.5G) over which a child is killed while it runs a task; 0: none"
    )
    max_memory_per_child: Size = _setting(  # noqa: RUF009  # a field, as the others
        0, "bytes of memory (200M, 1.5G) over which a child is replaced after its task; 0: never"
    )
    max_tasks_per_child: int = _setting(0, "tasks after which a child is replaced; 0: never")
    unknown_task_ttl: float = _setting(300.0, "seconds that a task no worker knows is given back, before it is dead-lettered")
    prefetch: int = _setting(256, "most messages in custody per child; short tasks only, long ones get one each")
    heartbeat: float = _setting(10.0, "seconds between AMQP heartbeats; a dead connection is noticed after twice that")
    http: str = _setting(
        "",
        "where a worker, or 'taskq scheduler', answers /livez, /readyz and /metrics: 127.0.0.1:9808, or a port of 127.0.0.1;"
        " empty: nowhere",
    )
    remote_control: bool = _setting(
        True, "whether a worker answers 'taskq status' and the like, and Celery's inspect and Flower"
    )
    events: bool = _setting(False, "whether a worker sends Celery's events from its start, and not only once a monitor asks")
    show_arguments: bool = _setting(False, "whether arguments and results are shown by remote control and in events")
    log_format: Literal["console", "json"] = _setting("console", "how log lines look")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "the least severe log lines shown")
    sources: Mapping[str, Source] = field(default_factory=dict, repr=False)

    @property
    def backend_url(self) -> str | None:
        """The URL that results go to, or None where results are off."""
        return None if self.backend == "off" else self.backend

    @property
    def replies(self) -> bool:
        """Whether results go back to their callers as messages, and are kept nowhere."""
        return self.backend.startswith("rpc:")

    @property
    def keeps_results(self) -> bool:
        """Whether there is a backend that can be asked later; only such a one counts the members of chords."""
        return self.backend != "off" and not self.replies

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The queues of the setting ``queues``, without duplicates; empty where it is not set."""
        return tuple(dict.fromkeys(name.strip() for name in self.queues.split(",") if name.strip()))


NAMES = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "sources")
ABOUT: Mapping[str, str] = {f.name: f.metadata["about"] for f in dataclasses.fields(Settings) if f.name != "sources"}
DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(Settings) if f.name != "sources"}
_TYPES = get_type_hints(Settings)
#: Environment variables with the prefix that are not settings.
_OTHER_VARIABLES = frozenset({"TASKQ_APP"})


def load(
    keywords: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Settings:
    """The effective settings out of their sources; SQLite files with relative names are in ``folder``.

    Raises ``ConfigurationError`` for an unknown name (naming the nearest) and for a value of the wrong kind.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(NAMES, "default")

    def take(name: str, value: Any, source: Source, called: str) -> None:
        if name not in NAMES:
            raise ConfigurationError(f"unknown setting {called}{_nearest(name)}")
        values[name] = convert(name, value, called)
        sources[name] = source

    for name, value in keywords.items():
        if value is not None:
            take(name, value, "keyword", f"{name}=")
    for variable, value in environment.items():
        if variable.startswith("TASKQ_") and variable not in _OTHER_VARIABLES:
            take(variable.removeprefix("TASKQ_").lower(), value, "environment", variable)
    for name, value in (command_line or {}).items():
        if value is not None:
            take(name, value, "command line", f"--{name.replace('_', '-')}")
    for name in values.keys() & {"broker", "backend"}:
        values[name] = absolute(name, values[name], folder)
    return _checked({**DEFAULTS, **values}, sources)


_ABOVE_ZERO = (
    "publish_timeout",
    "max_message_bytes",
    "max_result_bytes",
    "result_ttl",
    "max_crashes",
    "prefetch",
    "delivery_limit",
)
#: What the protocols have room for, and clocks can still add up to.
_MOST: Mapping[str, int] = {
    "concurrency": 1024,
    "prefetch": 65_535,
    "heartbeat": 65_535,
    "queue_max_priority": 255,
    "publish_timeout": 86_400,
    "grace": 30 * 86_400,
}
_MOST_OF: Mapping[Any, int] = {int: 2**31 - 1, float: int(checks.MOST_SECONDS), Size: 2**63 - 1}


def _checked(values: dict[str, Any], sources: dict[str, Source]) -> Settings:
    """Fills in what depends on other settings, and refuses what cannot work."""
    if not values["broker"]:
        values["broker"] = f"sqlite:///{state_database()}"
    if not values["backend"]:
        values["backend"] = values["broker"] if values["broker"].startswith("sqlite:") else "off"
    check_alone(values)
    if values["backend"].startswith("rpc:") and values["broker"].startswith("sqlite:"):
        raise ConfigurationError("backend='rpc://' needs an amqp:// broker: results go back through its reply queues")
    if 0 < values["time_limit"] <= values["soft_time_limit"]:
        raise ConfigurationError(
            f"soft_time_limit must be below time_limit={values['time_limit']:g}, not {values['soft_time_limit']:g}: "
            "it would never be reached"
        )
    if values["queue_max_priority"] and values["queue_type"] == "quorum" and values["broker"].startswith("amqp"):
        raise ConfigurationError("queue_max_priority needs queue_type='classic': RabbitMQ's quorum queues have no priorities")
    values["concurrency"] = values["concurrency"] or cpu_count()
    return Settings(**values, sources=sources)


def check_alone(values: Mapping[str, Any]) -> None:
    """Refuses, with a ``ConfigurationError``, those that cannot work whatever the other settings are."""
    for name, schemes in (("broker", BROKER_SCHEMES), ("backend", BACKEND_SCHEMES)):
        if (url := values.get(name)) and (name, url) != ("backend", "off"):
            _check_scheme(name, url, schemes)
    if values.get("http"):
        http_address(values["http"])
    for name in (name for name in values if _TYPES[name] in _MOST_OF):
        value, most = values[name], _MOST.get(name) or _MOST_OF[_TYPES[name]]
        if value <= 0 and name in _ABOVE_ZERO:
            raise ConfigurationError(f"{name} must be above 0, not {checks.shown(value)}")
        if value < 0:
            raise ConfigurationError(f"{name} must not be negative, not {checks.shown(value)}")
        if value > most:
            raise ConfigurationError(f"{name} must be {most} at most, not {checks.shown(value)}")
    if "default_queue" in values:
        queue_name("default_queue", values["default_queue"])


def absolute(name: str, url: str, folder: Path | None = None) -> str:
    """The URL of an SQLite file with the whole name of the file, which a relative one has in ``folder``, or where we are now.

    Other URLs come back as they are. Raises ``ConfigurationError`` where ``name``, a setting, names no file.
    """
    if not url.startswith("sqlite://"):
        return url
    file = url.removeprefix("sqlite:///")
    if file in ("", url, ":memory:") or "?" in file:
        raise ConfigurationError(
            f"{name}={url!r} names no file; write sqlite:///relative/file.db or sqlite:////absolute/file.db, without parameters"
        )
    try:
        path = Path(re.sub("^/+", "/", file)).expanduser()
        return f"sqlite:///{path if path.is_absolute() else (folder or Path.cwd()) / path}"
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"{name}={url!r} is relative to a folder that is not there: {error}") from None


def working_folder() -> Path | None:
    """Where we are; None where that folder was deleted."""
    try:
        return Path.cwd()
    except OSError:
        return None


_NOT_IN_URLS = re.compile(r"""[\s"'\x00-\x1f]""")


def http_address(text: str) -> tuple[str, int]:
    """Host and port of the setting ``http``; without a host, only this machine is meant. Raises ``ConfigurationError``."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or len(port) > 5 or int(port) > 65535 or (host.startswith("[") != host.endswith("]")):
        raise ConfigurationError(f"http must be host:port, such as 127.0.0.1:9808 or [::1]:9808, or a port, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def _check_scheme(name: str, url: str, schemes: tuple[str, ...]) -> None:
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in schemes:
        known = ", ".join(f"{s}://" for s in schemes)
        raise ConfigurationError(f"{name}={masked(url)!r} is not a URL that taskq speaks; it speaks {known}")
    # Not shown: what is no URL can't be masked.
    if scheme != "sqlite" and (odd := _NOT_IN_URLS.search(url)):
        raise ConfigurationError(f"{name}='{scheme}://…' holds {odd[0]!r}; in a URL, write it as {quote(odd[0])!r}")


def convert(name: str, value: Any, called: str) -> Any:
    """The value of a setting in its own type; raises ``ConfigurationError`` for one that is none, as ``called``."""
    wanted = _TYPES[name]
    if isinstance(value, str):
        value = str.__str__(value)
    if choices := get_args(wanted):
        if value not in choices:
            raise ConfigurationError(f"{called} must be one of {', '.join(choices)}, not {masked(checks.shown(value))}")
        return value
    if wanted is bool:
        return _truth(value, called)
    if wanted is str:
        return _text(name, value, called)
    if wanted is Size:
        return _bytes(value, called)
    if wanted is float and isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        number = wanted(value)
        exact = math.isfinite(number) and (isinstance(value, str) or (number == value and not isinstance(value, bool)))
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        kind = {"int": "a whole number", "float": "a number"}[wanted.__name__]
        raise ConfigurationError(f"{called} must be {kind}, not {masked(checks.shown(value))}")
    return number


def _text(name: str, value: Any, called: str) -> str:
    if name == "queues" and value != "":
        return ",".join(queue_names(called, value))
    if name == "http" and type(value) is int and 0 <= value <= 65_535:
        return str(value)
    return checks.text(called, value) if value != "" else ""


def _truth(value: Any, called: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    is_word = isinstance(value, (str, bool)) or (type(value) is int and value in (0, 1))
    truth = words.get(str(value).strip().lower()) if is_word else None
    if truth is None:
        raise ConfigurationError(f"{called} must be true or false, not {masked(checks.shown(value))}")
    return truth


# Whoever writes 200M of memory means what the kernel and Kubernetes' Mi count in: powers of 1024.
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS: Mapping[str, int] = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def _bytes(value: Any, called: str) -> int:
    if isinstance(value, str) and (size := _SIZE.fullmatch(value.strip())):
        return int(float(size[1]) * _UNITS[size[2].lower()])
    if type(value) is int:
        return value
    told = masked(checks.shown(value))
    raise ConfigurationError(f"{called} must be a number of bytes, such as 200M, 1.5G or 512KiB, not {told}")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; the settings are {', '.join(NAMES)}"


# Up to the last "@": a password that holds "@" or "/" unescaped is wrong in a URL, but it is still a password. And parameters,
# which drivers name as they like.
_PASSWORDS = (
    re.compile(r'://[^\s"/:@]*:(?P<secret>[^\s"]*)@'),
    re.compile(r"""[?&][^=&\s"']*(?:pass|pwd|secret|token)[^=&\s"']*=(?P<secret>[^&\s"']+)""", re.IGNORECASE),
)
#: A shorter piece of a password may stand in any text, and is looked for in quotation marks alone.
_TELLING = 4


def masked(text: str) -> str:
    """The text with the passwords of its URLs hidden: fit for logs, errors and screens."""
    if "://" not in text:
        return text
    shown, position = "", 0
    # Looked for in the text as it came: what one pattern hides may be half of what the other one would find.
    for start, end in sorted(found.span("secret") for pattern in _PASSWORDS for found in pattern.finditer(text)):
        if start >= position:
            shown += f"{text[position:start]}***"
        position = max(position, end)
    return shown + text[position:]


def without_secrets(text: str, url: str) -> str:
    """What a driver says of the URL, without the pieces of passwords that it may quote where it could not read the URL."""
    secrets = [secret for pattern in _PASSWORDS for secret in pattern.findall(url)]
    pieces = {piece for secret in secrets for piece in (secret, unquote(secret), *re.split(r"[/@:?#&=\[\]]", secret))}
    # A text that quotes them may have escaped what is odd in them.
    pieces |= {repr(piece)[1:-1] for piece in pieces}
    for piece in sorted(filter(None, pieces), key=len, reverse=True):
        if len(piece) >= _TELLING:
            text = text.replace(piece, "***")
        else:
            text = re.sub(rf"""(["'`]){re.escape(piece)}(["'`])""", r"\1***\2", text)
    return masked(text)
