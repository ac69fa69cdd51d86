"""The doctor: looks at a deployment from all sides, and says of each finding what mends it.

A check is a function that yields findings. One that fails hides no other; those that need the broker are left out where it does
not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from taskq.doctor import application, backend, broker, machine, settings
from taskq.doctor.finding import Finding, error
from taskq.doctor.patient import Patient
from taskq.errors import TaskqError

Check = Callable[[Patient], Iterator[Finding]]

ALONE: tuple[Check, ...] = (
    machine.python,
    machine.packages,
    machine.descriptors,
    machine.disks,
    application.imports,
    settings.settings,
    application.results,
    backend.backend,
)
#: With the one that says whether the broker answers before them.
WITH_BROKER: tuple[Check, ...] = (machine.locks, broker.queues, broker.workers, broker.trial)


def examine(patient: Patient) -> Iterator[Finding]:
    """All findings, as they come."""
    for check in ALONE:
        yield from _made(check, patient)
    answers = True
    for finding in _made(broker.reach, patient):
        answers = answers and finding.level != "error"
        yield finding
    for check in WITH_BROKER if answers else ():
        yield from _made(check, patient)


def _made(check: Check, patient: Patient) -> Iterator[Finding]:
    """What the check finds; that it could not be made is a finding too."""
    try:
        yield from check(patient)
    except TaskqError as failure:
        yield error(check.__name__, str(failure), "mend that, and ask again")
    except Exception as failure:  # noqa: BLE001  # whatever is wrong with one check, the others are worth having
        yield error(check.__name__, f"the check itself failed: {failure!r}", "please report it")
