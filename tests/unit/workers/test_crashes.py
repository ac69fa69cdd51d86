"""What becomes of a message whose process died, as a decision."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from taskq import config
from taskq.message import Message
from taskq.results.store import Record
from taskq.workers.crashes import SUSPICIOUS, Blame, Condemned, Coroner, End
from taskq.workers.launcher import Death
from taskq.workers.note import Terms
from taskq.workers.outcome import Outcome, record

MESSAGE = Message(headers={"id": "id-1", "task": "shop.pay", "retries": 1}, body=b"[[], {}, {}]", correlation_id="id-1")
SEGFAULT = Death(signal=11, peak_memory=50 << 20)
KILLED = Death(signal=9)
SUSPECT = MESSAGE.with_headers(**{"tq-alone": 5.0})


def coroner(**settings: Any) -> Coroner:
    return Coroner(
        config.load({"broker": "sqlite:////nowhere/unit.db", **settings}, environment={}), "1@host", lambda _: "mail"
    )


def with_header(message: Message, name: str, value: Any) -> Message:
    return message.with_headers(**{name: value})


def sent(outcome: Outcome) -> tuple[str, bool, Message]:
    """Where the outcome's only message goes, whether ahead of the line, and the message."""
    (publication,) = outcome.publish
    return publication.queue, publication.first, publication.message


def recorded(outcome: Outcome) -> dict[str, Any]:
    assert outcome.record is not None
    meta: dict[str, Any] = json.loads(outcome.record.meta)
    return meta


def test_a_crash_is_counted_in_the_message_that_runs_next() -> None:
    outcome = coroner().child_died("mail", MESSAGE, End(SEGFAULT, seconds=2.5))
    queue, first, message = sent(outcome)
    assert (outcome.event, outcome.record, queue, first, message.crashes) == ("crashed", None, "mail", True, 1)
    (past,) = message.headers["tq-history"]
    assert "SIGSEGV" in past["ended"]
    assert "2.5 s" in past["ended"]
    assert abs(past["started"] + 2.5 - time.time()) < 5


@pytest.mark.parametrize(("crashes", "suspected"), [(2, 0), (1, 1), (0, 2), (9, 0)])
def test_the_last_crash_is_the_end(crashes: int, suspected: int) -> None:
    message = with_header(with_header(MESSAGE, "tq-crashes", crashes), "tq-suspected", suspected)
    outcome = coroner(max_crashes=3).child_died("mail", message, End(SEGFAULT, stack="in pay()"))
    queue, _, letter = sent(outcome)
    assert (queue, letter.headers["tq-dead-reason"], letter.headers["tq-dead-signal"]) == ("mail.dead", "crashed", "SIGSEGV")
    assert "50 MiB" in letter.headers["tq-dead-detail"]
    assert letter.headers["tq-dead-traceback"] == "in pay()"
    assert letter.headers["tq-crashes"] == crashes + 1
    assert recorded(outcome)["result"]["exc_type"] == "DeadLettered"


@pytest.mark.parametrize(("terms", "reason"), [(Terms(fail_when_lost=True), "worker lost"), (Terms(at_most_once=True), "lost")])
def test_a_task_that_must_not_run_again_does_not(terms: Terms, reason: str) -> None:
    outcome = coroner().child_died("mail", MESSAGE, End(SEGFAULT, terms))
    queue, _, letter = sent(outcome)
    assert (queue, letter.headers["tq-dead-reason"]) == ("mail.dead", reason)
    assert recorded(outcome)["result"]["exc_type"] == "WorkerLost"


def test_the_time_limit_is_a_failure_or_a_retry() -> None:
    condemned = Condemned(7, "time limit", "its time limit of 3 s was over")
    failed = coroner().child_died("mail", MESSAGE, End(KILLED, condemned=condemned, stack="in loop()"))
    queue, _, letter = sent(failed)
    assert (queue, letter.headers["tq-dead-reason"], letter.headers["tq-dead-traceback"]) == (
        "mail.dead",
        "time limit",
        "in loop()",
    )
    assert recorded(failed)["result"]["exc_type"] == "TimeLimitExceeded"
    assert letter.crashes == 0
    retried = coroner().child_died("mail", SUSPECT, End(KILLED, Terms(retry_delay=4.0), condemned=condemned))
    (again,) = retried.publish
    assert (retried.event, again.queue, again.delay, again.message.headers["retries"]) == ("retried", "mail", 4.0, 2)
    assert "tq-alone" not in again.message.headers


def test_the_memory_limit_counts_as_a_crash_and_names_itself() -> None:
    end = End(KILLED, condemned=Condemned(7, "memory limit", "300 MiB, over its limit of 200 MiB"))
    assert sent(coroner().child_died("mail", MESSAGE, end))[2].crashes == 1
    letter = sent(coroner(max_crashes=1).child_died("mail", MESSAGE, end))[2]
    assert letter.headers["tq-dead-reason"] == "memory limit"
    assert "300 MiB" in letter.headers["tq-dead-detail"]


def test_who_was_revoked_is_revoked() -> None:
    end = End(KILLED, Terms(at_most_once=True), condemned=Condemned(7, "revoked", "it was revoked"))
    outcome = coroner().child_died("mail", MESSAGE, end)
    assert (outcome.event, outcome.publish, recorded(outcome)["status"]) == ("revoked", (), "REVOKED")


def test_the_end_of_the_worker_costs_nothing_unless_the_task_must_not_run_twice() -> None:
    outcome = coroner().worker_stops("mail", MESSAGE, End(KILLED))
    queue, first, message = sent(outcome)
    assert (outcome.event, queue, first, message.crashes) == ("given back", "mail", True, 0)
    lost = coroner().worker_stops("mail", MESSAGE, End(KILLED, Terms(at_most_once=True)))
    assert sent(lost)[2].headers["tq-dead-reason"] == "lost"


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_dead_worker_leaves_is_suspected_and_not_counted(begun: bool) -> None:
    for orphaned in {True, not begun}:
        outcome = coroner().came_back("mail", MESSAGE, orphaned=orphaned, begun=begun)
        queue, first, message = sent(outcome)
        assert (queue, first, message.crashes, message.headers["tq-suspected"]) == ("mail", True, 0, int(begun))
        assert abs(message.headers["tq-alone"] - time.time()) < 5


def test_what_comes_back_after_an_outage_is_put_down_to_that() -> None:
    message = MESSAGE
    for _ in range(3 * SUSPICIOUS):
        message = sent(coroner().came_back("mail", message, orphaned=False, begun=False, blinked=True))[2]
    assert "tq-alone" not in message.headers
    assert message.headers["tq-returns"] == 0, "it may have begun somewhere all the same"
    assert "tq-alone" in sent(coroner().came_back("mail", message, orphaned=False, begun=True, blinked=True))[2].headers


def test_without_proof_a_first_return_is_put_down_to_the_broker() -> None:
    queue, first, message = sent(coroner().came_back("mail", MESSAGE, orphaned=False, begun=False))
    assert (queue, first, message.headers["tq-returns"]) == ("mail", True, 1)
    assert "tq-alone" not in message.headers
    for _ in range(SUSPICIOUS - 1):
        assert "tq-alone" not in message.headers
        message = sent(coroner().came_back("mail", message, orphaned=False, begun=False))[2]
    assert "tq-alone" in message.headers
    assert (message.crashes, message.headers["tq-suspected"]) == (0, 0)


def test_a_suspect_that_comes_back_is_caught_by_proof_alone() -> None:
    queue, first, message = sent(coroner().came_back("mail", SUSPECT, orphaned=True, begun=False))
    assert (queue, first, message.crashes, message.headers["tq-alone"]) == ("mail", True, 1, 5.0)
    message = sent(coroner().came_back("mail", SUSPECT, orphaned=False, begun=False))[2]
    assert (message.crashes, message.headers["tq-alone"]) == (0, 5.0)
    twice = with_header(with_header(SUSPECT, "tq-crashes", 1), "tq-suspected", 1)
    queue, _, letter = sent(coroner(max_crashes=3).came_back("mail", twice, orphaned=False, begun=True))
    assert (queue, letter.headers["tq-dead-reason"]) == ("mail.dead", "crashed")


def test_a_task_that_had_begun_and_runs_at_most_once_is_lost_with_its_worker() -> None:
    def started(retries: int) -> Record:
        return Record("id-1", "STARTED", json.dumps({"result": {"retries": retries}, "at_most_once": True}).encode())

    lost = coroner().came_back("mail", MESSAGE, orphaned=False, begun=False, record=started(1))
    assert sent(lost)[2].headers["tq-dead-reason"] == "lost"
    assert recorded(lost)["result"]["exc_type"] == "WorkerLost"
    for kept in (started(0), Record("id-1", "FAILURE", b"{}"), None):
        outcome = coroner().came_back("mail", MESSAGE, orphaned=True, begun=False, record=kept)
        assert sent(outcome)[0] == "mail", "an attempt before this one had begun"


def test_a_task_that_has_ended_and_runs_at_most_once_is_over() -> None:
    ended = record(MESSAGE, "SUCCESS", 1, run="r")
    for marked in (MESSAGE, SUSPECT):
        assert coroner().came_back("mail", marked, orphaned=True, begun=True, record=ended) == Outcome("succeeded")
    again = coroner().came_back("mail", MESSAGE, orphaned=True, begun=True, record=record(MESSAGE, "SUCCESS", 1))
    assert sent(again)[0] == "mail", "who sends an id again wants it to run again"


def test_without_results_nothing_is_recorded() -> None:
    outcome = coroner(backend="off", max_crashes=1).child_died("mail", MESSAGE, End(SEGFAULT))
    assert (sent(outcome)[0], outcome.record) == ("mail.dead", None)


def test_when_all_children_die_at_once_each_task_is_suspected_and_none_is_counted() -> None:
    queue, first, message = sent(coroner().decide("mail", MESSAGE, End(KILLED), Blame.SHARED))
    assert (queue, first, message.crashes, message.headers["tq-suspected"]) == ("mail", True, 0, 1)
    lost = coroner(backend="off").decide("mail", MESSAGE, End(KILLED, Terms(at_most_once=True)), Blame.SHARED)
    assert sent(lost)[2].headers["tq-dead-reason"] == "lost"
