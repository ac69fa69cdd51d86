"""A schedule: what is sent again and again, and when. Frozen values and decisions; nothing here reads a clock or sends.

A *tick* is one moment at which a schedule is due, its *nominal time*, in UTC. A tick that nobody attended to, since no
scheduler ran, or none that could reach its servers, was *missed*; what becomes of it is the schedule's policy. A tick that is
merely late is sent. ``State`` is what the ledger remembers of a schedule.
"""

from __future__ import annotations

import difflib
import functools
import random
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypedDict, get_args
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from taskq import log
from taskq.checks import seconds, shown
from taskq.compose import NOBODY
from taskq.cron import Crontab, cron
from taskq.decoding import decoded
from taskq.errors import ConfigurationError, MessageError, WrongType
from taskq.launch import launch
from taskq.message import TICK, TICK_COPY
from taskq.results.ledger import LEDGER_SECONDS, Ledger
from taskq.signature import Canvas
from taskq.step import Step

logger = log.get_logger("taskq.scheduler")

#: What becomes of missed ticks: none of them is sent, only the latest, or each.
Misfire = Literal["skip", "latest", "all"]
#: Whether a tick is sent while the task of the last one has not ended.
Overlap = Literal["allow", "skip"]
#: How late a tick may be sent; then it counts as missed, as where another version of the app led, without this schedule.
LATEST = timedelta(seconds=60)
#: How far apart two ticks of a ``timedelta`` may be: rarer than that, nobody will be there to see it.
LONGEST = timedelta(days=3660)
#: The longest name, in characters.
LONGEST_NAME = 200
#: With ``misfire="all"``: how many missed ticks are sent at most, the latest.
MOST_MISSED = 1000


class ScheduleOptions(TypedDict, total=False):
    """How a schedule is kept.

    ``timezone``: whose clock a crontab means, "UTC" by default. ``misfire``: what becomes of ticks that were missed while no
    scheduler ran: with "skip" none is sent, with "latest" (the default) the last one, with "all" each, the last 1,000 at most.
    ``overlap="skip"``: a tick is not sent while the task of the last one has not ended, for as long as results are kept.
    ``jitter``: each tick's task is due up to so many seconds later, at random.
    """

    timezone: str | ZoneInfo
    misfire: Misfire
    overlap: Overlap
    jitter: float | timedelta


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS = uuid.UUID("6f1c2a0e-3d55-5b8e-9f35-6d0f5f7b7c11")
_MICROSECOND = timedelta(microseconds=1)


class Every(msgspec.Struct, frozen=True, tag="every"):
    """An entry that is due every so many microseconds, counted from the epoch: elapsed time, whatever any clock shows."""

    microseconds: int

    def __post_init__(self) -> None:
        if self.microseconds < 1:
            # Ticks that do not move on would be counted without end.
            raise ValueError(f"an entry must be due every so many microseconds, not every {self.microseconds}")

    def __str__(self) -> str:
        return f"every {timedelta(microseconds=self.microseconds)}"

    def next_after(self, moment: datetime, _: ZoneInfo) -> datetime:
        """The first moment later than this one at which the entry is due."""
        turns = (moment - _EPOCH) // _MICROSECOND // self.microseconds + 1
        return _EPOCH + timedelta(microseconds=turns * self.microseconds)


Entry = Crontab | Every


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent, when, and what if. It is plain JSON, so that it can travel."""

    name: str
    entry: Entry
    timezone: str
    step: Step
    misfire: Misfire = "latest"
    overlap: Overlap = "allow"
    jitter: float = 0.0

    @property
    def rule(self) -> str:
        """The entry and its zone, written out: where this changes, the schedule begins anew."""
        return msgspec.json.encode((self.entry, self.timezone)).decode()

    def next_after(self, moment: datetime) -> datetime:
        """The first tick later than this moment."""
        return self.entry.next_after(moment, ZoneInfo(self.timezone))

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last tick later than ``after`` that is no later than ``until``; None where there is none."""
        if self.next_after(after) > until:
            return None
        # Ticks are a second apart at least, so the last second that holds one is all that has to be found.
        end = until
        while end - after > timedelta(seconds=1):
            middle = after + (end - after) / 2
            after, end = (middle, end) if self.next_after(middle) <= until else (after, middle)
        return self.next_after(after)

    def kept_for(self, state: State, now: datetime) -> float:
        """For how many seconds from now its state is to be kept: past its next tick, so that it is not taken for a new one."""
        return LEDGER_SECONDS + max(0.0, (self.next_after(max(state.last, now)) - now).total_seconds())

    def call(self, tick: Tick, copy: str | None) -> Step:
        """What is sent for the tick. ``copy`` tells this publication from others of the same tick, where there may be some."""
        step, options = self.step, dict(self.step.options)
        options["headers"] = {**(options.get("headers") or {}), TICK: tick.key, **({TICK_COPY: copy} if copy else {})}
        if step.subtask_type is None:
            options["task_id"] = tick.task_id
        if self.jitter:
            options["countdown"] = (options.get("countdown") or 0.0) + random.Random(tick.key).uniform(0.0, self.jitter)
        return msgspec.structs.replace(step, options=options)


class Tick(msgspec.Struct, frozen=True):
    """One moment at which a schedule of an app is due."""

    app: str
    schedule: str
    nominal: datetime

    @property
    def key(self) -> str:
        """The tick in one word, the same for everybody."""
        return f"{self.app}/{self.schedule}@{self.nominal.isoformat()}"

    @property
    def task_id(self) -> str:
        """The id of the tick's task, the same whoever sends it."""
        return str(uuid.uuid5(_TICKS, self.key))


#: With its zone.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the ledger remembers of a schedule.

    ``last`` is the nominal time up to which every tick has been dealt with, ``sent`` that of the last one that was sent.
    ``pending`` is a tick that somebody began to send, ``copies`` times so far, and nobody has seen confirmed.
    """

    rule: str
    last: Moment
    sent: Moment | None = None
    pending: Moment | None = None
    copies: int = 0

    def __post_init__(self) -> None:
        if any(moment is not None and not 1970 <= moment.year < 3000 for moment in (self.last, self.sent, self.pending)):
            raise ValueError("it names a moment at which no schedule was ever due")

    def begun(self, nominal: datetime) -> State:
        """Somebody begins to send this tick, or begins again."""
        copies = self.copies + 1 if self.pending == nominal else 1
        return msgspec.structs.replace(self, last=max(nominal, self.last), pending=nominal, copies=copies)

    def done(self, nominal: datetime) -> State:
        """The tick has been sent."""
        return State(self.rule, max(nominal, self.last), nominal)

    def passed(self, nominal: datetime) -> State:
        """The tick is not sent."""
        return msgspec.structs.replace(self, last=nominal)


def entry_key(app: str, schedule: str) -> str:
    """The key in the ledger under which a schedule's state stands."""
    return f"schedule {app}/{schedule}"


_decode_state = msgspec.json.Decoder(State).decode


def read_state(entry: bytes) -> State | None:
    """The state that stands in the ledger; None for what cannot be read, as if nothing stood there."""
    try:
        return decoded(_decode_state, entry, "the state of a schedule")
    except MessageError as error:
        logger.warning("schedule_state_unreadable", error=str(error))
        return None


def last_sent(ledger: Ledger, app: str, schedules: Iterable[str]) -> dict[str, datetime]:
    """Of those schedules that have been sent, the nominal time of the last tick."""
    keys = {entry_key(app, name): name for name in schedules}
    states = {keys[key]: read_state(entry) for key, entry in ledger.read(list(keys)).items()}
    return {name: state.sent for name, state in states.items() if state is not None and state.sent is not None}


def due(schedule: Schedule, last: datetime, attended: datetime, now: datetime) -> list[datetime]:
    """The ticks to send now, oldest first: those after ``last`` that were attended to, and of the others what the policy says.

    Somebody has attended to the app's schedules from ``attended`` on, without a gap; but not to this one, if it is behind.
    """
    attended = max(attended, now - LATEST)
    missed: list[datetime] = []
    until, most = min(attended - _MICROSECOND, now), {"skip": 0, "latest": 1, "all": MOST_MISSED}[schedule.misfire]
    while len(missed) < most and last < until and (tick := schedule.latest(last, until)) is not None:
        missed.insert(0, tick)
        until = tick - _MICROSECOND
    late, tick = [], schedule.next_after(max(last, attended - _MICROSECOND))
    while tick <= now:
        late.append(tick)
        tick = schedule.next_after(tick)
    return [*missed, *late]


def schedule_of(
    name: str,
    entry: Crontab | timedelta | str,
    signature: Canvas[Any],
    *,
    timezone: str | ZoneInfo = "UTC",
    misfire: Misfire = "latest",
    overlap: Overlap = "allow",
    jitter: float | timedelta = 0.0,
) -> Schedule:
    """A schedule in the words of an application; raises ``ConfigurationError`` and what ``delay`` raises for arguments."""
    if not isinstance(signature, Canvas):
        raise WrongType(f"schedule {shown(name)}: what is sent must be a signature, such as task.s(1), not {shown(signature)}")
    signature.check(0)
    try:
        step = signature.step()
        _check(name, misfire, overlap, jitter)
        _check_options(step, overlap)
        return Schedule(
            name=name,
            entry=_entry_of(entry),
            timezone=_known_zone(timezone),
            step=step,
            misfire=misfire,
            overlap=overlap,
            jitter=float(seconds("jitter", jitter)),
        )
    except (ConfigurationError, MessageError, RecursionError) as error:
        raise ConfigurationError(f"schedule {shown(name)}: {error}") from None


def _check(name: Any, misfire: str, overlap: str, jitter: float | timedelta) -> None:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise ConfigurationError(f"its name must be a printable text of {LONGEST_NAME} characters at most")
    for word, value, words in (("misfire", misfire, get_args(Misfire)), ("overlap", overlap, get_args(Overlap))):
        if value not in words:
            raise ConfigurationError(f"{word} must be one of {', '.join(words)}, not {shown(value)}")
    if not 0 <= seconds("jitter", jitter) <= 86_400:
        raise ConfigurationError(f"jitter must be a number of seconds from 0 to 86400, not {shown(jitter)}")


def _entry_of(entry: Crontab | timedelta | str) -> Entry:
    match entry:
        case Crontab():
            return entry
        case str():
            return cron(entry)
        case timedelta():
            if not timedelta(seconds=1) <= entry <= LONGEST:
                raise ConfigurationError(
                    f"it would be due every {entry.total_seconds():g} s; it must be a second at least, and at most"
                    f" {LONGEST.days} days"
                )
            return Every(entry // _MICROSECOND)
    raise ConfigurationError(f"when it is due is said by a crontab(), a timedelta or a text of cron's, not by {shown(entry)}")


def _check_options(step: Step, overlap: Overlap) -> None:
    for option in ("task_id", "eta"):
        if step.options.get(option) is not None:
            raise ConfigurationError(f"{option} is for a single call; every tick has one of its own")
    if isinstance(step.options.get("expires"), str):
        raise ConfigurationError("expires must be a number of seconds, which count anew for each tick")
    # As it would be sent at the epoch.
    publications = launch(step, (), NOBODY, lambda _: "default", 0.0).publish
    if len(publications) != 1:
        raise ConfigurationError("a workflow that begins with several tasks cannot be sent just once; put a task before them")
    over, delay = publications[0].message.headers["expires"], timedelta(seconds=publications[0].delay)
    if over is not None and datetime.fromisoformat(over) <= _EPOCH + delay:
        raise ConfigurationError("expires must be a number of seconds above 0 and its countdown, or each tick expires")
    if overlap == "skip" and step.subtask_type is not None:
        raise ConfigurationError("overlap='skip' looks at one task's end, so it needs a single task, not a workflow")
    if overlap == "skip" and step.options.get("ignore_result"):
        raise ConfigurationError("overlap='skip' needs the task's result, and ignore_result is set")


def _known_zone(zone: str | ZoneInfo) -> str:
    name = zone.key if isinstance(zone, ZoneInfo) else zone
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        near = difflib.get_close_matches(shown(name), _zones(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "; write one of IANA's names, such as 'Europe/Berlin'"
        raise ConfigurationError(f"there is no time zone {shown(name)}{hint}") from None
    return name


@functools.cache
def _zones() -> list[str]:
    return sorted(available_timezones())
