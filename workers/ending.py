"""The end of a task: an outcome gets what its workflow makes of it. Pure.

Whoever decides that a task has ended passes its outcome through here: the child that ran it, and the supervisor for a task that
could not run, or whose process died. So a workflow goes on, or fails, whatever became of one of its tasks.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from taskq import log
from taskq.errors import ConfigurationError, MessageError
from taskq.launch import Failed, Follow, Member, Route, failed, gathered, succeeded
from taskq.message import Message
from taskq.results.store import Gathering, Record, Status
from taskq.serialization import decode
from taskq.step import NOTHING_FOLLOWS, Embed, settled, step_of
from taskq.workers.outcome import Flow, Outcome, record

logger = log.get_logger("taskq.workflow")

_PARTS: msgspec.json.Decoder[tuple[msgspec.Raw, msgspec.Raw, Embed]] = msgspec.json.Decoder(
    tuple[msgspec.Raw, msgspec.Raw, Embed]
)


def read_embed(message: Message) -> Embed:
    """What the message says of what follows; raises ``MessageError`` where it makes no sense.

    It is read as it is written, without making anything of marked types: so it can be written again.
    """
    try:
        return _PARTS.decode(message.body)[2]
    except (msgspec.DecodeError, RecursionError):
        pass
    match decode(message.body, message.content_encoding):
        case [_, _, dict() as embed]:
            try:
                return msgspec.convert(embed, Embed)
            except msgspec.ValidationError as error:
                raise MessageError(f"what is to follow the task cannot be understood: {error}") from None
    raise MessageError("the body is not [args, kwargs, embed]")


def check(embed: Embed) -> None:
    """Raise ``MessageError`` where what is to follow makes no sense: before the task has run, not after it."""
    for step in (*(embed.callbacks or ()), *(embed.errbacks or ()), *(embed.chain or ())):
        settled(step_of(step))
    if embed.chord is not None:
        settled(step_of(embed.chord))


def ended_well(outcome: Outcome, message: Message, embed: Embed, value: Any, route: Route) -> Outcome:
    """The message's task has returned this value (plain JSON). Raises ``MessageError`` and ``ConfigurationError``."""
    is_member = embed.chord is not None and message.headers.get("group")
    if not (embed.callbacks or embed.chain or is_member):
        return outcome
    return _followed(outcome, succeeded(message, embed, value, route, time.time()), message)


def ended_badly(
    outcome: Outcome, message: Message, described: dict[str, Any], route: Route, *, traceback: str | None = None
) -> Outcome:
    """The message's task has ended with this failure, as results describe it. What its message can't tell cannot be told on."""
    try:
        embed = read_embed(message)
        if embed == NOTHING_FOLLOWS:
            return outcome
        status: Status = "REVOKED" if outcome.event == "revoked" else "FAILURE"
        headers = message.headers
        what = Failed(str(headers.get("id")), str(headers.get("task")), status, described, traceback)
        return _followed(outcome, failed(message, embed, what, route, time.time()), message)
    except (MessageError, ConfigurationError):
        return outcome


def chord_ended(member: Member, gathering: Gathering, route: Route) -> Outcome:
    """All members of a chord have ended. A body that cannot be sent has failed, as one that can't run would have."""
    now = time.time()
    try:
        try:
            follow = gathered(member, gathering.members, route, now, shape=gathering.shape)
        except ConfigurationError as error:
            broken = msgspec.structs.replace(member.part, status="FAILURE", result=msgspec.json.encode(str(error)))
            follow = gathered(member, [broken], route, now)
    except MessageError as error:
        logger.error("chord_body_unreadable", chord=member.part.chord, error=str(error))
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
