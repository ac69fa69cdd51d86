"""Launching: what is to be published for a workflow to begin or to go on, and what is to be recorded when it can't. Pure.

Callers publish and record what comes out, in the order of ``Follow``. What is made twice from the same step has the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from taskq import log
from taskq.compose import OPTION_NAMES, Family, compose
from taskq.decoding import UNREADABLE
from taskq.describe import LONGEST_IN_HEADERS, bounded, shortened
from taskq.errors import ConfigurationError, MessageError
from taskq.message import Message, Publication
from taskq.results.store import Barrier, Part, Status
from taskq.serialization import decode
from taskq.step import CHAIN, CHORD, Embed, Step, chain_of, chord_of, derived, settled, step_of

#: The queue of a task by its name, where neither the call nor the workflow names one.
Route = Callable[[str], str]
#: A failed task's errback finds here what failed, how, and where; see ``Failed``.
FAILURE = "tq-failure"

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


def launch(step: Step, values: Sequence[Any], family: Family, route: Route, now: float) -> Follow:
    """Begin a workflow; its first tasks get ``values`` (plain JSON) before their own arguments."""
    launcher = _Launcher(family, route, now)
    launcher.launch(settled(step), list(values), [])
    return launcher.follow()


def succeeded(message: Message, embed: Embed, value: Any, route: Route, now: float) -> Follow:
    """The message's task has returned this value (plain JSON)."""
    launcher = _Launcher(_children_of(message), route, now)
    for number, callback in enumerate(embed.callbacks or ()):
        launcher.launch(settled(callback, derived(str(message.headers.get("id")), f"link {number}")), [value], [])
    if embed.chain:
        *rest, following = embed.chain
        launcher.launch(settled(following), [value], rest)
    launcher.count(message.headers, embed.chord, "SUCCESS", value)
    return launcher.follow()


def failed(message: Message, embed: Embed, failure: Failed, route: Route, now: float) -> Follow:
    """The message's task has ended badly, and so has what was to follow it."""
    launcher = _Launcher(_children_of(message), route, now)
    launcher.call(embed.errbacks or (), failure)
    for step in reversed(embed.chain or ()):
        launcher.abandon(step_of(step), failure, call=False)
    launcher.count(message.headers, embed.chord, failure.status, failure.failure)
    return launcher.follow()


def gathered(member: Member, parts: Sequence[Part], route: Route, now: float, *, shape: bytes | None = None) -> Follow:
    """All members of a chord have ended: its body begins, or fails with the first one that failed.

    ``shape`` is that of ``Gathering``.
    """
    body, launcher = settled(member.body), _Launcher(member.family, route, now)
    bad = next((part for part in parts if part.status not in ("SUCCESS", "IGNORED")), None)
    if bad is None:
        launcher.launch(body, [_values(parts, shape)], [])
        return launcher.follow()
    described = decode_plain(bad.result)
    text = bounded(f"Dependency {bad.id} raised {_as_raised(described)}")
    failure = {"exc_type": "ChordError", "exc_message": [text], "exc_module": "celery.exceptions"}
    launcher.abandon(body, Failed(body.id or "", body.task, "FAILURE", failure), call=True)
    return launcher.follow()


def _values(parts: Sequence[Part], shape: bytes | None) -> list[Any]:
    """What the members have returned; nested as Celery's header was where it says so."""
    values = {part.id: decode_plain(part.result) for part in parts}
    if shape is not None:
        try:
            return [_nested(child, values) for child in msgspec.json.decode(shape)[1]]
        except UNREADABLE:
            logger.warning("chord_shape_unreadable", chord=parts[0].chord)
    return [decode_plain(part.result) for part in parts]


def _nested(result: Any, values: Mapping[str, Any]) -> Any:
    """The values in the place of a result as Celery writes it: its id and parent, and its children if it is a group."""
    (task_id, _), children = result
    return values[task_id] if children is None else [_nested(child, values) for child in children]


@dataclass
class _Launcher:
    """Collects what follows; ``family`` is that of the tasks that are launched."""

    family: Family
    route: Route
    now: float
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
                first, *others = _spread(step)
                self.launch(first, values, [*rest, *reversed(others)])
            case "group":
                if rest:
                    # Who wrote this did not know that a group cannot be followed, but a chord's header can.
                    self.launch(settled(chord_of(step.with_options(chain=None), chain_of(rest[::-1]))), values, [])
                    return
                for member in _spread(step):
                    self.launch(member, values, [])
            case "chord":
                self._launch_chord(step, values, rest)
            case _:
                self._send(step, values, rest)

    def _launch_chord(self, chord: Step, values: list[Any], rest: list[Step]) -> None:
        body = _handed_down(chord, chord.body)
        if rest:
            body = body.with_options(chain=rest)
        gid = str(chord.id)
        begins = {name: chord.options[name] for name in (*_INHERITED, *_WHEN) if name in chord.options}
        header, size = _enlisted(chord.header, body, gid)
        header = msgspec.structs.replace(header, options={**begins, **header.options})
        if not size:
            self.launch(body.with_options(chain=None), [[]], rest)
            return
        self.barriers.append(Barrier(gid, size))
        for member in _spread(header):
            self.launch(member, values, [])

    def _send(self, step: Step, values: list[Any], rest: list[Step], **headers: Any) -> None:
        options = _send_options(step)
        family = self.family
        if reply_to := step.options.get("reply_to"):
            family = msgspec.structs.replace(family, reply_to=reply_to)
        chord = step.options.get("chord")
        embed = Embed(
            step.following("link") or None,
            step.following("link_error") or None,
            rest or None,
            step_of(chord) if chord is not None else None,
        )
        args = step.args if step.immutable else [*values, *step.args]
        publication = compose(
            step.task,
            msgspec.json.encode((args, step.kwargs, embed)),
            str(step.id),
            options,
            step.options.get("queue") or self.route(step.task),
            family,
            self.now,
            group=step.options.get("group_id"),
            group_index=step.options.get("group_index"),
        )
        if headers:
            message = publication.message.with_headers(**headers)
            publication = msgspec.structs.replace(publication, message=message)
        self.publish.append(publication)

    def call(self, errbacks: Sequence[Step], failure: Failed) -> None:
        """Tell these of the failure; they get the failed task's id before their own arguments, as in Celery."""
        cut = msgspec.structs.replace(failure, traceback=failure.traceback and shortened(failure.traceback, LONGEST_IN_HEADERS))
        for number, errback in enumerate(errbacks):
            step = settled(errback, derived(failure.id, f"error {number}"))
            try:
                if step.subtask_type is None:
                    self._send(step, [failure.id], [], **{FAILURE: msgspec.to_builtins(cut)})
                else:
                    self.launch(step, [failure.id], [])
            except ConfigurationError as error:
                # The failure itself must be recorded all the same.
                logger.error("errback_not_sent", task_id=failure.id, errback=errback.task, error=str(error))

    def abandon(self, step: Step, failure: Failed, *, call: bool) -> None:
        """The step will never run: whoever waits for any task of it is told so. ``call``: its own errbacks too."""
        for inner in step.following("chain")[::-1]:
            self.abandon(inner, failure, call=False)
        match step.subtask_type:
            case "chain":
                for number, inner in enumerate(_spread(step)):
                    self.abandon(inner, failure, call=call and not number)
            case "group":
                for inner in _spread(step):
                    self.abandon(inner, failure, call=call)
            case "chord":
                self.abandon(step.header, failure, call=False)
                self.abandon(_handed_down(step, step.body), failure, call=call)
            case _:
                own = msgspec.structs.replace(failure, id=step.id or "", task=step.task)
                if step.id:
                    self.ends.append(own)
                if call:
                    self.call(step.following("link_error"), own)
                headers = {"id": step.id, "group": step.options.get("group_id"), **step.options}
                chord = step.options.get("chord")
                self.count(headers, chord and step_of(chord), own.status, own.failure)

    def count(self, headers: dict[str, Any], body: Step | None, status: Status, result: Any) -> None:
        """The task with these headers has ended: where it is a chord's member, it is counted."""
        chord, task_id, index = headers.get("group"), headers.get("id"), headers.get("group_index")
        if body is not None and isinstance(chord, str) and isinstance(task_id, str):
            part = Part(chord, index if isinstance(index, int) else None, task_id, status, msgspec.json.encode(result))
            self.members.append(Member(part, step_of(body), self.family))


def _children_of(message: Message) -> Family:
    headers = message.headers
    return Family(headers.get("id"), headers.get("root_id") or headers.get("id"), message.reply_to)


def _spread(step: Step) -> list[Step]:
    """The steps of a chain or a group, with what was said of the whole: to errors listens each, to the end the last."""
    steps = step.steps
    if step.subtask_type == CHAIN:
        steps = [_handed_down(step, inner, first=not i, last=i == len(steps) - 1) for i, inner in enumerate(steps)]
    else:
        steps = [_handed_down(step, inner) for inner in steps]
    return steps


#: What is said of how a workflow is sent holds for each of its tasks that says nothing else; but it is delayed once.
_INHERITED = tuple(OPTION_NAMES - {"task_id", "countdown", "eta"})
_WHEN = ("countdown", "eta")
_AT_THE_END = ("chord", "group_id", "group_index")


def _handed_down(outer: Step, inner: Step, *, first: bool = True, last: bool = True) -> Step:
    """The inner step, with what was said of the whole. ``first`` and ``last``: it begins when the whole does, it ends it."""
    if not outer.options.keys() - {"task_id"}:
        return inner
    options = {name: outer.options[name] for name in _INHERITED if name in outer.options}
    if first and outer.subtask_type != CHORD:
        options.update({name: outer.options[name] for name in _WHEN if name in outer.options})
    if last and "chord" in outer.options:
        options.update({name: outer.options[name] for name in _AT_THE_END if name in outer.options})
    given: dict[str, Any] = {**options, **inner.options}
    for name, meant in (("link_error", True), ("link", last)):
        if meant and (added := outer.following(name)):
            given[name] = [*inner.following(name), *added]
    return msgspec.structs.replace(inner, options=given)


def _enlisted(header: Step, body: Step, gid: str) -> tuple[Step, int]:
    """The header's members as members of the chord, wherever they end, and how many these are."""
    numbers = iter(range(1 << 62))
    members = [_member(member, body, gid, numbers) for member in header.steps]
    return msgspec.structs.replace(header, kwargs={**header.kwargs, "tasks": members}), next(numbers)


def _member(step: Step, body: Step, gid: str, numbers: Iterator[int]) -> Step:
    """The step, whose end, or whose ends, are members of the chord."""
    match step.subtask_type:
        case "chain":
            *before, last = step.steps
            tasks = [*before, _member(last, body, gid, numbers)]
            return msgspec.structs.replace(step, kwargs={**step.kwargs, "tasks": tasks})
        case "group":
            tasks = [_member(inner, body, gid, numbers) for inner in step.steps]
            return msgspec.structs.replace(step, kwargs={**step.kwargs, "tasks": tasks})
        case "chord":
            kwargs = {**step.kwargs, "body": _member(step.body, body, gid, numbers)}
            return msgspec.structs.replace(step, kwargs=kwargs)
    return step.with_options(chord=body, group_id=gid, group_index=next(numbers))


def _send_options(step: Step) -> dict[str, Any]:
    """How the step's task is sent; moments have travelled as text."""
    options = {name: step.options[name] for name in OPTION_NAMES if step.options.get(name) is not None}
    for name in ("eta", "expires"):
        if isinstance(options.get(name), (str, dict)):
            options[name] = _moment(options[name])
    return options


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else value["__value__"])
        return moment if moment.tzinfo else moment.astimezone()
    except (KeyError, TypeError, ValueError):
        raise MessageError(f"{value!r} is no moment") from None


def decode_plain(data: bytes) -> Any:
    """JSON values as they are written, types unmarked, so that they are written again as they were."""
    try:
        return msgspec.json.decode(data)
    except UNREADABLE:
        # Celery writes NaN, which is no JSON.
        return decode(data)


def _as_raised(described: Any) -> str:
    """A failure as ``repr`` would write the exception."""
    if not isinstance(described, dict):
        return repr(described)
    args = described.get("exc_message") or []
    return f"{described.get('exc_type')}({', '.join(map(repr, args if isinstance(args, list) else [args]))})"
