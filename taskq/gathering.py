"""Gathering: what the body of a chord is given, once all members have ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from taskq import log
from taskq.decoding import UNREADABLE
from taskq.results.store import Part
from taskq.serialization import decode
from taskq.step import CHAIN, Step, step_of

logger = log.get_logger("taskq.workflow")


def values_of(parts: Sequence[Part], shape: bytes | None) -> list[Any]:
    """What the members have returned; nested as Celery's header was where it says so."""
    if shape is not None:
        values = {part.id: decode_plain(part.result) for part in parts}
        try:
            # Celery's GroupResult.as_tuple()
            _, children = msgspec.json.decode(shape)["result"]
            return [_nested(child, values) for child in children]
        except UNREADABLE:
            logger.warning("chord_shape_unreadable", chord=parts[0].chord)
    return [decode_plain(part.result) for part in parts]


def _nested(result: Any, values: Mapping[str, Any]) -> Any:
    """The values in the place of a result as Celery writes it: its id and parent, and its children if it is a group."""
    (task_id, _), children = result
    return values[task_id] if children is None else [_nested(child, values) for child in children]


def told_once(body: Step) -> Step:
    """The body of a chord without those errbacks that are called by the chord that it is a member of, too.

    Celery's clients link an errback of a chord to the bodies of all chords in its header.
    """
    end = body.steps[-1] if body.subtask_type == CHAIN and "chord" not in body.options else body
    if (outer := end.options.get("chord")) is None or not (own := body.following("link_error")):
        return body
    others = step_of(outer).following("link_error")
    return body.with_options(link_error=[errback for errback in own if errback not in others])


def decode_plain(data: bytes) -> Any:
    """JSON values as they are written, types unmarked, so that they are written again as they were."""
    try:
        return msgspec.json.decode(data)
    except UNREADABLE:
        # Celery writes NaN, which is no JSON. Raises MessageError where it is nothing else either.
        return decode(data)


def as_raised(described: Any) -> str:
    """A failure as ``repr`` would write the exception."""
    if not isinstance(described, dict):
        return repr(described)
    args = described.get("exc_message") or []
    return f"{described.get('exc_type')}({', '.join(map(repr, args if isinstance(args, list) else [args]))})"
