"""The options of a call: what each may be, checked where it is given and again where a worker composes what follows a task.

What comes out has one form, whoever gave it: seconds are numbers, moments are in UTC, texts are plain ``str``. Checking that
again changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from taskq.checks import MOST_SECONDS, is_text, number_of_seconds, shown, text, truth
from taskq.describe import text_of
from taskq.errors import ArgumentRefused, ConfigurationError
from taskq.message import PROTOCOL_HEADERS, TICK, TICK_COPY, TRIAL_PREFIX, dead_letter_queue

#: AMQP's limit for the id of a message and the name of a header, in bytes.
LONGEST_ID = 255
#: How deep the value of a header may be nested.
DEEPEST_HEADER = 20


class SendOptions(TypedDict, total=False):
    """How a call is sent. The names are Celery's.

    ``countdown``: run after so many seconds; ``eta``: run at that moment; ``expires``: do not run after so many seconds or that
    moment; ``priority``: 0 to 9, 9 first; ``task_id``: the id, made up by default; ``headers``: extra message headers;
    ``time_limit`` and ``soft_time_limit``: seconds, in place of the task's and the worker's. A ``timedelta`` says seconds too.
    """

    queue: str | None
    priority: int | None
    countdown: float | timedelta | None
    eta: datetime | None
    expires: float | timedelta | datetime | None
    task_id: str | None
    ignore_result: bool | None
    time_limit: float | timedelta | None
    soft_time_limit: float | timedelta | None
    headers: Mapping[str, Any] | None


OPTION_NAMES = frozenset(SendOptions.__annotations__)
#: What follows a call: signatures, which are checked as calls of their own.
FOLLOWERS = frozenset({"link", "link_error"})
FLOW_OPTION_NAMES = OPTION_NAMES | FOLLOWERS

#: Names of queues that hold dead letters, what goes first, what is delayed, trials, and what operators say: no worker would run
#: a call from there.
_ENDS_OF_OURS = (dead_letter_queue(""), ".returned")
_BEGINNINGS_OF_OURS = (TRIAL_PREFIX, "taskq_delayed_", "taskq.control.")


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say, in its one form, followers left out; raises ``ConfigurationError``, which names the option."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name in FOLLOWERS:
            continue
        check = _CHECKS.get(name)
        if check is None:
            raise unknown_option(name)
        plain[name] = check(name, value)
    if "countdown" in plain and "eta" in plain:
        raise ConfigurationError("countdown and eta exclude each other; give one")
    hard, soft = plain.get("time_limit"), plain.get("soft_time_limit")
    if hard is not None and soft is not None and soft >= hard:
        raise ConfigurationError(f"soft_time_limit={soft:g} must be below time_limit={hard:g}: it would never be reached")
    return plain


def unknown_option(name: Any) -> ConfigurationError:
    """The error that says so."""
    near = difflib.get_close_matches(str(name), FLOW_OPTION_NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(FLOW_OPTION_NAMES))}"
    return ConfigurationError(f"unknown option {shown(name)}{hint}")


def time_limits(options: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The hard and the soft time limit among these options, in seconds; raises as ``checked``."""
    limits = checked({name: options.get(name) for name in ("time_limit", "soft_time_limit")})
    return limits.get("time_limit"), limits.get("soft_time_limit")


def seconds(name: str, value: Any) -> float:
    """So many seconds from now on, or ago, given as a number or a ``timedelta``; raises as ``checked``."""
    number = number_of_seconds(value)
    if number is None:
        raise ConfigurationError(f"{name} must be a number of seconds or a timedelta, not {shown(value)}")
    if not -MOST_SECONDS <= number <= MOST_SECONDS:
        raise ConfigurationError(f"{name} must be a number of seconds, a hundred years of them at most, not {shown(value)}")
    return number


def queue_name(name: str, value: Any) -> str:
    """The name of a queue for calls; raises as ``checked``."""
    queue = text(name, value)
    if queue.endswith(_ENDS_OF_OURS) or queue.startswith(_BEGINNINGS_OF_OURS):
        ends, beginnings = (" or ".join(map(repr, names)) for names in (_ENDS_OF_OURS, _BEGINNINGS_OF_OURS))
        raise ConfigurationError(
            f"{name} is {shown(queue)}, and taskq keeps names that end with {ends}, or begin with {beginnings}, for"
            " queues of its own; rename yours"
        )
    return queue


def queue_names(name: str, value: Any) -> list[str]:
    """The names of queues, in one text or several, separated by commas; raises as ``checked``."""
    texts = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    queues = [queue.strip() for given in texts for queue in text(name, given).split(",") if queue.strip()]
    if texts and not queues:
        raise ConfigurationError(f"{name} names no queue: {shown(value)}")
    return [queue_name(name, queue) for queue in queues]


def positional(task: str, args: Any) -> Sequence[Any]:
    """The positional arguments of a call; an iterator is consumed. Raises ``ArgumentRefused`` for what is no list of them."""
    if type(args) in (tuple, list):
        return args  # type: ignore[no-any-return]  # it is one of the two
    if args is None:
        return ()
    if isinstance(args, (str, bytes, bytearray, memoryview, Mapping, AbstractSet)) or not isinstance(args, Iterable):
        raise ArgumentRefused(
            f"the arguments of task {task!r} must be a tuple or a list of them, such as ({shown(args)},), not {shown(args)}; "
            "delay(…) takes them one by one"
        )
    return tuple(args)


def keywords(task: str, kwargs: Any) -> Mapping[str, Any]:
    """The keyword arguments of a call; raises ``ArgumentRefused`` for what is no mapping of names to them."""
    if not kwargs and (kwargs is None or type(kwargs) is dict):
        return {}
    if not isinstance(kwargs, Mapping):
        raise ArgumentRefused(f"the keyword arguments of task {task!r} must be a dict, not {shown(kwargs)}")
    if wrong := [name for name in kwargs if not is_text(name)]:
        raise ArgumentRefused(f"the name of a keyword argument of task {task!r} must be a text, not {shown(wrong[0])}")
    return kwargs


def identifier(name: str, value: Any) -> str:
    """The id of a task or a group; raises as ``checked``."""
    task_id = text(name, value)
    if (size := len(task_id.encode())) > LONGEST_ID:
        raise ConfigurationError(f"{name} is {size} bytes, over {LONGEST_ID}: {shown(value)}")
    return task_id


def _priority(name: str, value: Any) -> int:
    if not (type(value) is int and 0 <= value <= 9):
        raise ConfigurationError(f"{name} must be a whole number from 0 to 9, not {shown(value)}")
    return value


def _limit(name: str, value: Any) -> float:
    if (limit := seconds(name, value)) <= 0:
        raise ConfigurationError(f"{name} must be a number of seconds above 0, not {shown(value)}")
    return limit


def _moment(name: str, value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} must be a datetime with a time zone, not {shown(value)}")
    try:
        moment = None if value.utcoffset() is None else value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise ConfigurationError(f"{name} is {shown(value)}, which is before or after all time in UTC") from None
    except Exception as error:  # its time zone is the application's
        raise ConfigurationError(f"{name} has a time zone that fails: {text_of(error)}") from error
    if moment is None:
        raise ConfigurationError(f"{name} needs a time zone; write datetime.now(UTC) + …, or use seconds")
    return moment


def _expiry(name: str, value: Any) -> float | datetime:
    return _moment(name, value) if isinstance(value, datetime) else seconds(name, value)


#: Headers in which RabbitMQ keeps its own account, which taskq leaves out of what it sends, or that mean more queues to it.
_BROKERS_HEADERS = ("x-death", "x-delivery-count", "x-acquired-count", "x-first-death-", "x-last-death-")
_RESERVED = PROTOCOL_HEADERS | {"compression", "CC", "BCC"}


def _headers(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a dict of names to values, not {shown(value)}")
    for header in value:
        if not is_text(header) or not 0 < len(header.encode()) <= LONGEST_ID:
            raise ConfigurationError(f"the name of a header must be a text of 1 to {LONGEST_ID} bytes, and not {shown(header)}")
        ours = header.startswith("tq-") and header not in (TICK, TICK_COPY)
        if ours or header in _RESERVED or header.startswith(_BROKERS_HEADERS):
            raise ConfigurationError(f"the header {shown(header)} is part of the protocol; give yours another name")
    return {header: header_value(f"the header {shown(header)}", item) for header, item in value.items()}


def header_value(where: str, value: Any, depth: int = DEEPEST_HEADER) -> Any:
    """The value of a header, as all brokers carry it alike; raises as ``checked`` for what they would change or refuse."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and is_text(value):
        return str.__str__(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float) and -float("inf") < value < float("inf"):
        return float(value)
    if isinstance(value, (list, tuple, Mapping)) and not depth:
        raise ConfigurationError(f"{where} is nested deeper than {DEEPEST_HEADER} levels, or contains itself")
    if isinstance(value, (list, tuple)):
        return [header_value(where, item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not is_text(key) or len(key.encode()) > LONGEST_ID:
                raise ConfigurationError(f"{where} has the key {shown(key)}; keys are texts of at most {LONGEST_ID} bytes")
        return {str.__str__(key): header_value(where, item, depth - 1) for key, item in value.items()}
    raise ConfigurationError(
        f"{where} holds {shown(value)}; headers carry texts, numbers of 64 bits, True, False, None, lists and dicts"
    )


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "queue": queue_name,
    "priority": _priority,
    "countdown": seconds,
    "eta": _moment,
    "expires": _expiry,
    "task_id": identifier,
    "ignore_result": truth,
    "time_limit": _limit,
    "soft_time_limit": _limit,
    "headers": _headers,
}
