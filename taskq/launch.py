"""Launching: what is to be published for a workflow to begin or to go on, and what is to be recorded when it can't. Pure.

Callers publish and record what comes out, in the order of ``Follow``. What is made twice from the same step has the same ids.

Steps and headers come from anywhere. Whatever they hold, the functions here raise nothing but ``MessageError`` and
``ConfigurationError``, whose text says what cannot be sent and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from taskq import log
from taskq.broker.interface import Check
from taskq.checks import is_text, shown
from taskq.compose import Family, compose
from taskq.decoding import UNREADABLE, unreadable
from taskq.describe import bounded
from taskq.errors import ConfigurationError, MessageError, MessageTooLarge
from taskq.gathering import as_raised, decode_plain, told_once, values_of
from taskq.inherit import beginning, enlisted, handed_down, spread
from taskq.message import HIGHEST_COUNT, Message, Publication
from taskq.options import OPTION_NAMES, header_value
from taskq.results.store import Barrier, Part, Status
from taskq.step import GROUP, NOTHING_FOLLOWS, Embed, Step, chain_of, chord_of, derived, settled, step_of

#: The queue of a task by its name, where neither the call nor the workflow names one.
Route = Callable[[str], str]
#: A failed task's errback finds here what failed, how, and where; see ``Failed``.
FAILURE = "tq-failure"
#: How much of a traceback, and of the failure itself, an errback is told, in bytes: headers have to fit into one frame of AMQP.
LONGEST_TRACEBACK = 16_384
LONGEST_FAILURE = 16_384
#: How many bytes of what follows may be written into the messages with which a workflow begins, or goes on: each member of a
#: group carries all that follows the group.
MOST_CARRIED = 64 * 1_048_576


logger = log.get_logger("taskq.workflow")


class Failed(msgspec.Struct, frozen=True):
    """A task that ended badly: its failure as results describe it, and its traceback."""

    id: str
    task: str
    status: Status
    failure: dict[str, Any]
    traceback: str | None = None


class Member(msgspec.Struct, frozen=True):
    """A chord's member that has ended, and what follows once all have: the body, launched by the last one's family."""

    part: Part
    body: Step
    family: Family


class Follow(msgspec.Struct, frozen=True):
    """What follows: open these chords first, then publish, then record ``ends`` and count ``members``."""

    barriers: tuple[Barrier, ...] = ()
    publish: tuple[Publication, ...] = ()
    ends: tuple[Failed, ...] = ()
    members: tuple[Member, ...] = ()


NOTHING = Follow()


def launch(step: Step, values: Sequence[Any], family: Family, route: Route, now: float, check: Check | None = None) -> Follow:
    """Begin a workflow; its first tasks get ``values`` (plain JSON) before their own arguments.

    With ``check``, what it raises is raised too; so in the functions below.
    """
    with _bounded("the workflow"):
        launcher = _Launcher(family, route, now, check)
        launcher.launch(settled(step), list(values), [])
        return launcher.follow()


def succeeded(message: Message, embed: Embed, value: Any, route: Route, now: float, check: Check | None = None) -> Follow:
    """The message's task has returned this value (plain JSON)."""
    with _bounded("what follows the task"):
        launcher = _Launcher(_children_of(message), route, now, check)
        for number, callback in enumerate(embed.callbacks or ()):
            launcher.launch(settled(callback, derived(str(message.headers.get("id")), f"link {number}")), [value], [])
        if embed.chain:
            *rest, following = embed.chain
            launcher.launch(settled(following), [value], rest)
        launcher.count(message.headers, embed.chord, "SUCCESS", value)
        return launcher.follow()


def failed(message: Message, embed: Embed, failure: Failed, route: Route, now: float, check: Check | None = None) -> Follow:
    """The message's task has ended badly, and so has what was to follow it. What of that cannot be told on is logged."""
    with _bounded("what follows the task"):
        launcher = _Launcher(_children_of(message), route, now, check)
        launcher.call(embed.errbacks or (), failure)
        for step in reversed(embed.chain or ()):
            launcher.abandon(step, failure, call=False)
        launcher.count(message.headers, embed.chord, failure.status, failure.failure)
        return launcher.follow()


def gathered(
    member: Member,
    parts: Sequence[Part],
    route: Route,
    now: float,
    *,
    shape: bytes | None = None,
    check: Check | None = None,
) -> Follow:
    """All members of a chord have ended: its body begins, or fails with the first one that failed.

    ``shape`` is that of ``Gathering``.
    """
    with _bounded("the body of the chord"):
        body, launcher = told_once(settled(member.body)), _Launcher(member.family, route, now, check)
        bad = next((part for part in parts if part.status not in ("SUCCESS", "IGNORED")), None)
        if bad is None:
            launcher.launch(body, [values_of(parts, shape)], [])
            return launcher.follow()
        described = decode_plain(bad.result)
        if body.subtask_type == GROUP and isinstance(described, dict):
            # As in Celery: there is no one body to say that it depended on the member.
            failure = described
        else:
            text = bounded(f"Dependency {bad.id} raised {as_raised(described)}")
            failure = {"exc_type": "ChordError", "exc_message": [text], "exc_module": "celery.exceptions"}
        launcher.abandon(body, Failed(body.id or "", body.task, "FAILURE", failure), call=True)
        return launcher.follow()


@contextmanager
def _bounded(what: str) -> Iterator[None]:
    """Whatever others wrote into steps and headers, what it raises in here is one of our errors."""
    try:
        yield
    except MessageTooLarge as error:
        raise ConfigurationError(str(error)) from None
    except UNREADABLE as error:
        raise unreadable(what, error) from None


@dataclass
class _Launcher:
    """Collects what follows; ``family`` is that of the tasks that are launched."""

    family: Family
    route: Route
    now: float
    check: Check | None = None
    carried: int = 0
    barriers: list[Barrier] = field(default_factory=list)
    publish: list[Publication] = field(default_factory=list)
    ends: list[Failed] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    def follow(self) -> Follow:
        if not (self.barriers or self.publish or self.ends or self.members):
            return NOTHING
        return Follow(tuple(self.barriers), tuple(self.publish), tuple(self.ends), tuple(self.members))

    def launch(self, step: Step, values: list[Any], rest: list[Step]) -> None:
        """Begin a step that is in order; ``rest`` follows its end, the last step first."""
        rest = [*rest, *step.following("chain")]
        match step.subtask_type:
            case "chain":
                first, *others = spread(step)
                self.launch(first, values, [*rest, *reversed(others)])
            case "group":
                if rest:
                    # Who wrote this did not know that a group cannot be followed, but a chord's header can.
                    self.launch(settled(chord_of(step.with_options(chain=None), chain_of(rest[::-1]))), values, [])
                    return
                for member in spread(step):
                    self.launch(member, values, [])
            case "chord":
                self._launch_chord(step, values, rest)
            case _:
                self._send(step, values, rest)

    def _launch_chord(self, chord: Step, values: list[Any], rest: list[Step]) -> None:
        body = handed_down(chord, chord.body)
        if rest:
            body = body.with_options(chain=rest)
        gid = str(chord.id)
        header, size = enlisted(chord.header, body, gid)
        header = beginning(chord, header)
        if not size:
            self.launch(body.with_options(chain=None), [[]], rest)
            return
        self.barriers.append(Barrier(gid, size))
        for member in spread(header):
            self.launch(member, values, [])

    def _send(self, step: Step, values: list[Any], rest: list[Step], **headers: Any) -> None:
        chord = step.options.get("chord")
        embed = Embed(
            step.following("link") or None,
            step.following("link_error") or None,
            rest or None,
            step_of(chord) if chord is not None else None,
        )
        args = step.args if step.immutable else [*values, *step.args]
        body = msgspec.json.encode((args, step.kwargs, self._carry(embed)))
        publication = publication_of(step, body, self.family, self.route, self.now)
        if headers:
            message = publication.message.with_headers(**headers)
            publication = msgspec.structs.replace(publication, message=message)
        if self.check is not None:
            self.check(publication)
        self.publish.append(publication)

    def _carry(self, embed: Embed) -> Embed | msgspec.Raw:
        """The embed, written already where it is more than nothing: who writes it into each message of a group pays for it."""
        if embed == NOTHING_FOLLOWS:
            return NOTHING_FOLLOWS
        written = msgspec.json.encode(embed)
        self.carried += len(written)
        if self.carried > MOST_CARRIED:
            raise ConfigurationError(
                f"each task of a group carries all that follows the group, which makes more than {MOST_CARRIED} bytes of "
                "messages here; put a task between two large groups that starts the second, or have fewer members do more each"
            )
        return msgspec.Raw(written)

    def call(self, errbacks: Sequence[Step], failure: Failed) -> None:
        """Tell these of the failure; they get the failed task's id before their own arguments, as in Celery.

        One that cannot be sent is logged: the failure itself must be recorded all the same.
        """
        told = _brief(failure) if errbacks else None
        for number, errback in enumerate(errbacks):
            one = _Launcher(self.family, self.route, self.now, self.check)
            try:
                step = settled(errback, derived(failure.id, f"error {number}"))
                if step.subtask_type is None:
                    one._send(step, [failure.id], [], **{FAILURE: told})
                else:
                    one.launch(step, [failure.id], [])
            except (ConfigurationError, MessageError, MessageTooLarge, *UNREADABLE) as error:
                logger.error("errback_not_sent", task_id=failure.id, errback=shown(errback.task), error=str(error))
            else:
                self.barriers += one.barriers
                self.publish += one.publish

    def abandon(self, step: Step, failure: Failed, *, call: bool) -> None:
        """The step will never run: whoever waits for any task of it is told so. ``call``: its own errbacks too.

        What cannot be read of it is logged, and the rest is told all the same.
        """
        try:
            self._abandon(step, failure, call=call)
        except (MessageError, *UNREADABLE) as error:
            logger.error("step_unreadable", task_id=failure.id, step=shown(step.task), error=str(error))

    def _abandon(self, step: Step, failure: Failed, *, call: bool) -> None:
        for inner in step.following("chain")[::-1]:
            self.abandon(inner, failure, call=False)
        match step.subtask_type:
            case "chain":
                for number, inner in enumerate(spread(step)):
                    self.abandon(inner, failure, call=call and not number)
            case "group":
                for inner in spread(step):
                    self.abandon(inner, failure, call=call)
            case "chord":
                self.abandon(step.header, failure, call=False)
                self.abandon(handed_down(step, step.body), failure, call=call)
            case _:
                task_id = step.id if is_text(step.id) else None
                own = msgspec.structs.replace(failure, id=task_id or "", task=step.task)
                if task_id:
                    self.ends.append(own)
                if call:
                    self.call(step.following("link_error"), own)
                headers = {"id": task_id, "group": step.options.get("group_id"), **step.options}
                chord = step.options.get("chord")
                self.count(headers, chord and step_of(chord), own.status, own.failure)

    def count(self, headers: dict[str, Any], body: Step | None, status: Status, result: Any) -> None:
        """The task with these headers has ended: where it is a chord's member, it is counted."""
        chord, task_id = _text(headers.get("group")), _text(headers.get("id"))
        if body is not None and chord and task_id:
            part = Part(chord, _index(headers.get("group_index")), task_id, status, msgspec.json.encode(result))
            self.members.append(Member(part, step_of(body), self.family))


def publication_of(step: Step, body: bytes, family: Family, route: Route, now: float) -> Publication:
    """The message of a step that is a task, and where it goes. Raises ``MessageError`` and ``ConfigurationError``."""
    if reply_to := _text(step.options.get("reply_to")):
        family = msgspec.structs.replace(family, reply_to=reply_to)
    options = {name: step.options[name] for name in OPTION_NAMES if step.options.get(name) is not None}
    for name in ("eta", "expires"):
        if isinstance(options.get(name), (str, dict)):
            options[name] = _moment(options[name])
    return compose(
        step.task,
        body,
        options,
        options.get("queue") or route(step.task),
        family,
        now,
        group=_text(step.options.get("group_id")),
        group_index=_index(step.options.get("group_index")),
    )


def _text(value: Any) -> str | None:
    """The id or the name that a header or an option holds; None where it is none."""
    return value if is_text(value) else None


def _index(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= HIGHEST_COUNT else None


def _children_of(message: Message) -> Family:
    task_id = _text(message.headers.get("id"))
    return Family(task_id, _text(message.headers.get("root_id")) or task_id, message.reply_to)


def _moment(value: Any) -> datetime:
    """A moment that has travelled as text."""
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else value["__value__"])
        return moment if moment.tzinfo else moment.astimezone()
    except UNREADABLE:
        raise MessageError(f"{shown(value)} is no moment") from None


def _brief(failure: Failed) -> dict[str, Any]:
    """The failure as an errback is told of it: no larger than a header may be, and of values that headers carry."""
    lines = (failure.traceback or "").encode(errors="backslashreplace")[-LONGEST_TRACEBACK:].decode(errors="ignore")
    described = failure.failure
    try:
        described = header_value("the failure", described)
        fits = len(msgspec.json.encode(described)) <= LONGEST_FAILURE
    except ConfigurationError:
        fits = False
    if not fits:
        args = failure.failure.get("exc_message")
        text = repr(args[0] if isinstance(args, list) and len(args) == 1 else args)
        cut = text.encode(errors="backslashreplace")[: LONGEST_FAILURE // 2].decode(errors="ignore")
        named = {name: value for name in ("exc_type", "exc_module") if is_text(value := failure.failure.get(name))}
        described = {**named, "exc_message": [cut]}
    return {**msgspec.to_builtins(failure), "failure": described, "traceback": lines or None}
