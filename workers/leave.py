"""Leave to begin, as the backend gives it: to one run of a task that runs at most once, to one copy of a schedule's tick."""

from __future__ import annotations

from taskq import log
from taskq.results.ledger import Ledger, may_run
from taskq.workers.crashes import TAKEN_SECONDS
from taskq.workers.last_resort import LastResort, in_words, may_pass
from taskq.workers.outcome import Outcome, again
from taskq.workers.settlement import Question, Settlement

logger = log.get_logger("taskq.settle")


def without_leave(settlement: Settlement, last_resort: LastResort) -> Outcome:
    """What becomes of a copy of a message whose task has begun elsewhere, or has ended."""
    delivery, record = settlement.delivery, settlement.outcome.record
    task_id = None if record is None else record.id
    logger.warning("duplicate_met", task_id=task_id, queue=delivery.queue, other=settlement.leave)
    if settlement.leave == "over":
        return Outcome("dropped")
    # Not dropped: should whoever has begun it be lost without a word, this copy is all that is left of the message.
    return again("delayed", delivery.queue, last_resort.message(delivery), delay=TAKEN_SECONDS)


def may_tick(ledger: Ledger | None, question: Question) -> bool:
    """Whether this copy of a tick may run. Raises ``BrokerError`` while that can't be found out.

    Where there is no ledger, it may: no slot must wait for ever. So may what no ledger can hold: no scheduler has sent that.
    """
    if ledger is None:
        return True
    try:
        return may_run(ledger, question.tick, question.copy)
    except Exception as error:
        if may_pass(error):
            raise
        logger.warning("tick_unreadable", queue=question.delivery.queue, error=in_words(error))
        return True
