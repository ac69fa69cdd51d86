"""The end of a task: an outcome gets what its workflow makes of it. Pure.

Whoever decides that a task has ended passes its outcome through here: the child that ran it, and the supervisor for a task that
could not run, or whose process died. So a workflow goes on, or fails, whatever became of one of its tasks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from taskq import log
from taskq.decoding import UNREADABLE, decoded
from taskq.errors import ConfigurationError, MessageError
from taskq.launch import Failed, Follow, Member, Route, failed, gathered, succeeded
from taskq.message import Message
from taskq.results.store import Gathering, Record, Status
from taskq.serialization import decode
from taskq.step import NOTHING_FOLLOWS, Embed, settled, step_of
from taskq.workers.outcome import Flow, Outcome, record

logger = log.get_logger("taskq.workflow")


class _End(msgspec.Struct):
    result: Any = None


_END: msgspec.json.Decoder[_End] = msgspec.json.Decoder(_End)
#: How often the end of a chord's body may be refused that is only recorded, before nobody is told of it.
_TOLD = 2
_PARTS: msgspec.json.Decoder[tuple[msgspec.Raw, msgspec.Raw, Embed]] = msgspec.json.Decoder(
    tuple[msgspec.Raw, msgspec.Raw, Embed]
)


def _convert(embed: dict[str, Any]) -> Embed:
    return msgspec.convert(embed, Embed)


def read_embed(message: Message) -> Embed:
    """What the message says of what follows; raises ``MessageError`` where it makes no sense.

    It is read as it is written, without making anything of marked types: so it can be written again.
    """
    try:
        return _PARTS.decode(message.body)[2]
    except UNREADABLE:
        # Written in another charset, or with Python's NaN: the slower decoder reads both, or says what is wrong.
        pass
    match decode(message.body, message.content_encoding):
        case [_, _, dict() as embed]:
            return decoded(_convert, embed, "what is to follow the task")
    raise MessageError("the body is not [args, kwargs, embed]")


def check(embed: Embed) -> None:
    """Raise ``MessageError`` where what is to follow makes no sense: before the task has run, not after it."""
    for step in (*(embed.callbacks or ()), *(embed.errbacks or ()), *(embed.chain or ())):
        settled(step_of(step))
    if embed.chord is not None:
        settled(step_of(embed.chord))


def passes_on(embed: Embed) -> bool:
    """Whether anything that follows the task takes what it has returned."""
    following = [*(embed.callbacks or ()), *(embed.chain or ())[-1:], *([embed.chord] if embed.chord is not None else [])]
    return any(step.subtask_type is not None or not step.immutable for step in following)


def ended_well(outcome: Outcome, message: Message, embed: Embed, value: Any, route: Route) -> Outcome:
    """The message's task has returned this value (plain JSON). Raises ``MessageError`` and ``ConfigurationError``."""
    is_member = embed.chord is not None and message.headers.get("group")
    if not (embed.callbacks or embed.chain or is_member):
        return outcome
    return _followed(outcome, succeeded(message, embed, value, route, time.time()), message)


def ended_badly(
    outcome: Outcome,
    message: Message,
    described: dict[str, Any],
    route: Route,
    *,
    traceback: str | None = None,
    followed: bool = False,
) -> Outcome:
    """The message's task has ended with this failure, as results describe it. What its message can't tell cannot be told on.

    ``followed``: what was to follow it has been sent already, so that only its chord has yet to count it.
    """
    try:
        embed = read_embed(message)
        if followed:
            embed = Embed(chord=embed.chord)
        if embed == NOTHING_FOLLOWS:
            return outcome
        status: Status = "REVOKED" if outcome.event == "revoked" else "FAILURE"
        headers = message.headers
        what = Failed(str(headers.get("id")), str(headers.get("task")), status, described, traceback)
        return _followed(outcome, failed(message, embed, what, route, time.time()), message)
    except (MessageError, ConfigurationError):
        return outcome


def counted(outcome: Outcome, message: Message, end: Record, route: Route) -> Outcome:
    """The message's task ended before, with this record, and all that may be missing is that its chord has counted it."""
    meta = decoded(_END.decode, end.meta, "the record of the task's end")
    try:
        embed = Embed(chord=read_embed(message).chord)
        if end.status in ("SUCCESS", "IGNORED"):
            return ended_well(outcome, message, embed, meta.result, route)
        what = Failed(str(message.headers.get("id")), str(message.headers.get("task")), end.status, meta.result)
        return _followed(outcome, failed(message, embed, what, route, time.time()), message)
    except (MessageError, ConfigurationError):
        return outcome


def chord_ended(member: Member, gathering: Gathering, route: Route, refused: Sequence[str] = ()) -> Outcome:
    """All members of a chord have ended. A body that cannot be sent has failed, as one that can't run would have.

    ``refused`` says why what came of this before could not take effect: after the body, its failure is told to its errbacks,
    then only recorded, and then nobody is told.
    """
    now = time.time()
    try:
        try:
            follow = None if refused else gathered(member, gathering.members, route, now, shape=gathering.shape)
        except ConfigurationError as error:
            follow, refused = None, [str(error)]
        if follow is None:
            broken = msgspec.structs.replace(member.part, status="FAILURE", result=msgspec.json.encode(refused[0]))
            follow = gathered(member, [broken], route, now)
        if len(refused) > 1:
            follow = msgspec.structs.replace(follow, publish=())
    except MessageError as error:
        logger.error("chord_body_unreadable", chord=member.part.chord, error=str(error))
        return Outcome("gathered")
    if len(refused) > _TOLD:
        logger.error("chord_body_lost", chord=member.part.chord, error=refused[-1])
        return Outcome("gathered")
    return _followed(Outcome("gathered"), follow, None)


def _followed(outcome: Outcome, follow: Follow, message: Message | None) -> Outcome:
    records = tuple(kept for end in follow.ends if (kept := _record(end, message)) is not None)
    flow = Flow(follow.barriers, records, follow.members)
    return msgspec.structs.replace(outcome, publish=(*outcome.publish, *follow.publish), flow=flow)


def _record(end: Failed, message: Message | None) -> Record | None:
    """The record of a task that will never run."""
    headers = {"id": end.id, "parent_id": message.headers.get("id") if message is not None else None}
    return record(Message(headers=headers, body=b""), end.status, end.failure, end.traceback)
