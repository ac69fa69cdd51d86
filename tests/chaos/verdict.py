"""The verdict: each promise as a function from the evidence to what contradicts it, in words, with the ledger's lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from taskq.message import CRASHES, SUSPECTED
from tests.chaos.evidence import AGAINST_CHILDREN, AGAINST_CONNECTIONS, AGAINST_SUPERVISORS, EVERYTHING, Evidence
from tests.chaos.ledger import Deed, Run

POISONS = ("poison", "plague")
#: Deeds for which a task that they hit may be counted: a plague is somebody else's doing, even where it strikes many times.
MAY_COUNT = (*AGAINST_CHILDREN, "supervisor", "whole worker")
#: How many ids a fault of one kind shows.
SHOWN = 5

#: How many children a worker of a storm has at most: as many tasks may have begun unseen when all of them die.
MOST_CHILDREN = 3


def faults(evidence: Evidence) -> list[str]:
    """Everything that is wrong, grouped by promise; empty where all promises were kept."""
    texts = []
    for check in CHECKS:
        found = list(check(evidence))
        if found:
            more = [f"… and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            texts.append("\n  ".join([f"{check.__doc__} ({len(found)})", *found[:SHOWN], *more]))
    return texts


def lost(evidence: Evidence) -> Iterator[str]:
    """A confirmed call never ended."""
    for task_id in evidence.ledger.calls.keys() - evidence.ends.keys():
        yield evidence.ledger.about(task_id)


def unfinished_success(evidence: Evidence) -> Iterator[str]:
    """A task is recorded as successful that never finished, or with another's result."""
    for task_id, end in evidence.ends.items():
        if end["status"] == "SUCCESS":
            call, runs = evidence.ledger.calls.get(task_id), evidence.ledger.runs.get(task_id, [])
            if not any(run.finished for run in runs) or (call and end["result"] != call.key):
                yield f"{end}\n    {evidence.ledger.about(task_id)}"


def wrongly_ended(evidence: Evidence) -> Iterator[str]:
    """A task ended badly that had no reason to, or a harmful one well."""
    for task_id, end in evidence.ends.items():
        if not _may_end_so(evidence, task_id, end["status"], str(end["result"])):
            yield f"{end['status']} {end['result']}\n    {evidence.ledger.about(task_id)}"


def _may_end_so(evidence: Evidence, task_id: str, status: str, result: str) -> bool:
    runs = evidence.ledger.runs.get(task_id, [])
    crashed = status == "FAILURE" and "crashed" in result
    if crashed and sum(1 for run in runs if evidence.hits(run, *MAY_COUNT)) >= evidence.max_crashes:
        return True
    match _task(evidence, task_id):
        case "poison" | "plague":
            return crashed
        case "endless":
            return status == "FAILURE" and "TimeLimitExceeded" in result
        case "once" if status == "FAILURE" and "WorkerLost" in result:
            # Without a run it was hit before its first line.
            return not runs or any(evidence.hits(run, *EVERYTHING) for run in runs)
        case _:
            return status == "SUCCESS"


def ran_more_than_once(evidence: Evidence) -> Iterator[str]:
    """A task ran twice that must never do so."""
    for task_id, runs in evidence.ledger.runs.items():
        if runs[0].task == "once" and len(runs) > 1:
            yield evidence.ledger.about(task_id)


def ended_twice(evidence: Evidence) -> Iterator[str]:
    """A task has two ends."""
    for task_id, ends in evidence.recorded.items():
        if len(ends) > 1 and not evidence.doubled(task_id):
            yield f"{ends}\n    {evidence.ledger.about(task_id)}"


def letters_without_failure(evidence: Evidence) -> Iterator[str]:
    """A dead letter belongs to no failure, or the other way round, or there are two."""
    failed = {task_id for task_id, end in evidence.ends.items() if end["status"] != "SUCCESS"}
    for task_id in failed ^ set(evidence.letters):
        failures = [status for status, _ in evidence.recorded.get(task_id, []) if status != "SUCCESS"]
        if not (failures and evidence.letters.get(task_id, []) and evidence.doubled(task_id)):
            yield f"letters: {len(evidence.letters.get(task_id, []))}\n    {evidence.ledger.about(task_id)}"
    for task_id, letters in evidence.letters.items():
        if len(letters) - 1 > len(evidence.meanwhile(task_id)):
            yield f"letters: {[letter.headers for letter in letters]}\n    {evidence.ledger.about(task_id)}"


def repeated_for_no_reason(evidence: Evidence) -> Iterator[str]:
    """A task ran again though nothing had happened to it."""
    for task_id in evidence.ledger.runs:
        if _task(evidence, task_id) not in POISONS and evidence.unexplained(task_id):
            yield evidence.ledger.about(task_id)


def repeated_in_peace(evidence: Evidence) -> Iterator[str]:
    """A task ran again while there were graceful restarts only."""
    for task_id in evidence.ledger.during("peace", "calm"):
        repeated = any(len(runs) > 1 for runs in evidence.attempts(task_id))
        if repeated and _task(evidence, task_id) not in POISONS:
            yield evidence.ledger.about(task_id)


def innocent_counted(evidence: Evidence) -> Iterator[str]:
    """A task was counted for a crash in which its process did not die."""
    blind = _blind(evidence)
    for task_id, runs in evidence.ledger.runs.items():
        if _task(evidence, task_id) in POISONS:
            continue
        for index, run in enumerate(runs):
            killed = sum(1 for past in runs[:index] if evidence.hits(past, *MAY_COUNT))
            if run.crashes > killed and not _take(blind, run, run.crashes - killed):
                yield f"crashes {run.crashes}, killed {killed} times\n    {evidence.ledger.about(task_id)}"
                break


def _blind(evidence: Evidence) -> list[Deed]:
    """Kills that may have hit a task before its first line, oldest first: of a child in no recorded run, or of all children.

    One that came after the last line of a run may have hit the next task of that child.
    """
    struck = {
        deed
        for runs in evidence.ledger.runs.values()
        for run in runs
        for deed in evidence.hits(run, *AGAINST_CHILDREN)
        if run.finished is None or deed.at <= run.finished
    }
    one = [deed for deed in evidence.ledger.deeds if deed.kind in AGAINST_CHILDREN and deed not in struck]
    several = [deed for deed in evidence.ledger.deeds if deed.kind in (*AGAINST_SUPERVISORS, "zygote")]
    return sorted([*one, *several * MOST_CHILDREN], key=lambda deed: deed.at)


def _take(blind: list[Deed], run: Run, count: int) -> bool:
    """Use up so many of the blind kills before a run, each of which can have been one task's."""
    before = [deed for deed in blind if deed.at <= run.started]
    for deed in before[-count:]:
        blind.remove(deed)
    return len(before) >= count


def poison_in_peace(evidence: Evidence) -> Iterator[str]:
    """A poisonous task did not start exactly as often as it may."""
    for task_id in evidence.ledger.during("peace", "calm"):
        if _task(evidence, task_id) == "poison" and len(evidence.ledger.runs.get(task_id, [])) != evidence.max_crashes:
            yield evidence.ledger.about(task_id)


def poison_counted_wrongly(evidence: Evidence) -> Iterator[str]:
    """A poisonous task started oftener than what happened to its workers explains, or its letter tells something else."""
    for task_id, runs in evidence.ledger.runs.items():
        kind = _task(evidence, task_id)
        if kind not in POISONS:
            continue
        forgotten = {deed for run in runs for deed in evidence.hits(run, *AGAINST_SUPERVISORS, *AGAINST_CONNECTIONS)}
        own = {deed for deed in forgotten if kind == "plague" and any(deed.at == run.started for run in runs)}
        # What ends its worker goes uncounted the first time, when others were in custody too.
        most = evidence.max_crashes + bool(own) + len((forgotten | set(evidence.meanwhile(task_id))) - own)
        letters = evidence.letters.get(task_id, [])
        counted = [letter.count(CRASHES) + letter.count(SUSPECTED) for letter in letters]
        if len(runs) > most or any(count < evidence.max_crashes for count in counted):
            yield f"letters {[letter.headers for letter in letters]}\n    {evidence.ledger.about(task_id)}"


def left_over(evidence: Evidence) -> Iterator[str]:
    """A queue is not empty."""
    for name, count in evidence.left.items():
        yield f"{name}: {count}"


def _task(evidence: Evidence, task_id: str) -> str:
    runs, call = evidence.ledger.runs.get(task_id, []), evidence.ledger.calls.get(task_id)
    return runs[0].task if runs else call.task if call else ""


CHECKS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    lost,
    unfinished_success,
    wrongly_ended,
    ran_more_than_once,
    ended_twice,
    letters_without_failure,
    repeated_for_no_reason,
    repeated_in_peace,
    innocent_counted,
    poison_in_peace,
    poison_counted_wrongly,
    left_over,
)
