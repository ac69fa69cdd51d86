"""Follow-ups: which of the messages that settlements publish go out, and when. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from taskq.message import Publication
from taskq.results.rpc import reply
from taskq.workers.outcome import Outcome
from taskq.workers.settlement import Settlement


def may_go_out(settlements: Sequence[Settlement], all_there_are: Sequence[Settlement]) -> Sequence[Settlement]:
    """Those whose follow-ups may go out now; alone, what may have broken a connection, so that a second time proves it."""
    unsent = [settlement for settlement in settlements if settlement.receipt is None]
    if not any(settlement.breaks for settlement in all_there_are):
        return unsent
    under_way = [settlement for settlement in all_there_are if settlement.receipt is not None]
    if any(settlement.breaks for settlement in under_way):
        return []
    harmless = [settlement for settlement in unsent if not settlement.breaks]
    return harmless if harmless or under_way else unsent[:1]


def to_send(settlement: Settlement, *, replies: bool) -> tuple[Publication, ...]:
    """What goes out next of what the settlement publishes; where results are ``replies``, they do too."""
    if settlement.unsent is not None:
        return settlement.unsent[:1]
    stage = settlement.stages[0]
    if not replies:
        return stage.publish
    records = (stage.record, *(stage.flow.records if stage.flow is not None else ()))
    return (*stage.publish, *(sent for record in records if record is not None and (sent := reply(record)) is not None))


def is_told_only(outcome: Outcome, publication: Publication) -> bool:
    """Whether the publication only tells somebody of a bad end, which stands without it."""
    dead_letter = outcome.publish[:1] if outcome.event == "dead-lettered" else ()
    return outcome.event in ("failed", "revoked", "dead-lettered") and publication not in dead_letter
