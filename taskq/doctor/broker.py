"""The broker: whether it can be reached, and whether a message goes its way: declared, confirmed, held back, consumed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from taskq.config import masked
from taskq.doctor.finding import Finding, error, ok, warning
from taskq.doctor.patient import PATIENCE, Patient
from taskq.duration import spelled
from taskq.errors import BrokerError, DatabaseError, QueueMismatch
from taskq.message import Message, Publication, dead_letter_queue, trial_queue

#: How long a message may take in a trial, in seconds, and for how long the second one is held back.
_TRIAL, _DELAY = 5.0, 1.0
#: Only one policy holds for a queue, and what a queue says itself cannot be seen to have been changed by one.
_NO_LIMIT = (
    "rabbitmqctl set_policy --apply-to queues taskq-dead '{pattern}' '{{\"delivery-limit\": 2147483647}}' "
    "(a policy does not end this warning), or delete the queue once it is empty, and it is declared anew with a limit"
)
#: What quorum queues need to pass messages on without a loss.
_OLDEST_RABBITMQ = (3, 10)


def reach(patient: Patient) -> Iterator[Finding]:
    """Whether the broker answers, and what it is."""
    where, began = masked(patient.settings.broker), time.monotonic()
    source = patient.settings.sources["broker"]
    try:
        product, version = patient.app.publisher.server()
    except DatabaseError as failure:
        yield error("broker", str(failure), f"mend the file or its folder, or name another one; broker is set by: {source}")
        return
    except BrokerError as failure:
        mend = "start it, open the network, or correct host, user, password and virtual host"
        yield error("broker", str(failure), f"{mend}; broker is set by: {source}")
        return
    numbers = ".".join(map(str, version))
    yield ok("broker", f"{product} {numbers} at {where} answers in {spelled(time.monotonic() - began)}")
    if product == "RabbitMQ" and version < _OLDEST_RABBITMQ:
        yield error("broker", f"RabbitMQ {numbers} can lose messages that quorum queues pass on", "upgrade it to 3.10 or newer")


def queues(patient: Patient) -> Iterator[Finding]:
    """Whether the app's queues are as they should be, whether what waits in them is stuck, and what has died."""
    publisher, paused = patient.app.publisher, patient.app.paused()
    missing = []
    for name in patient.app.queue_names():
        try:
            unlimited = publisher.verify(name)
        except QueueMismatch as failure:
            yield error("queues", str(failure), "until then, neither calls nor workers can use it")
            continue
        for queue in unlimited:
            text = f"queue {queue!r} has no delivery limit of its own: RabbitMQ 4 deletes what was looked at 20 times"
            yield warning("queues", text, _NO_LIMIT.format(pattern=f"^{re.escape(queue)}$"))
        stats, dead = publisher.stats(name), publisher.depth(dead_letter_queue(name))
        if stats is None:
            missing.append(name)
            continue
        if name in paused:
            yield warning("queues", f"queue {name!r} is paused: {stats.ready} messages wait", f"taskq resume {name}")
        oldest = f", the oldest for {spelled(stats.oldest)}" if stats.oldest else ""
        yield ok("queues", f"queue {name!r} is declared as it should be, {stats.ready} ready{oldest}")
        if dead:
            yield warning("queues", f"queue {name!r} has {dead} dead letters", f"taskq dead list {name}")
    if not patient.embedded and patient.settings.queue_type == "classic":
        text = "RabbitMQ itself drops what a Celery client sent with expires= and nobody took in time, and nobody is told"
        yield ok("queues", f"classic queues: {text}, unless a policy hands it to the workers: see 'expires' in docs/celery.md")
    if missing:
        yield ok("queues", f"not there yet: {', '.join(missing)}; the first call or worker declares them")


def trial(patient: Patient) -> Iterator[Finding]:
    """Whether a message is confirmed and comes back, from a queue that is there for a moment."""
    publisher, queue = patient.app.publisher, trial_queue()
    try:
        began = time.monotonic()
        publisher.publish([Publication(queue, _message())])
        confirmed = time.monotonic() - began
        if _comes(patient, queue):
            yield ok("publishing", f"a message was confirmed in {spelled(confirmed)}, and came back")
        else:
            text = f"a message was confirmed, and had not come back after {_TRIAL:g} s"
            yield error("publishing", text, "see the broker's log; policies and limits may keep or drop messages")
        yield from _delays(patient, queue)
    finally:
        publisher.delete(queue)


def _delays(patient: Patient, queue: str) -> Iterator[Finding]:
    if patient.embedded and not patient.workers:
        yield ok("delays", "not tried: on SQLite, workers let delayed messages go, and none answers")
        return
    began = time.monotonic()
    patient.app.publisher.publish([Publication(queue, _message(), _DELAY)])
    if _comes(patient, queue):
        yield ok("delays", f"a message with a delay of {_DELAY:g} s came after {spelled(time.monotonic() - began)}")
    else:
        text = f"a message with a delay of {_DELAY:g} s had not come after {_TRIAL:g} s, nor will retries and countdowns"
        yield error("delays", text, "see the broker's log for queues named taskq_delayed_…; each needs a running leader")


def _message() -> Message:
    return Message(headers={"task": "taskq.trial"}, body=b"[[], {}, {}]")


def _comes(patient: Patient, queue: str) -> bool:
    """Whether a message is ready in the queue soon; it is taken out."""
    publisher, until = patient.app.publisher, time.monotonic() + _TRIAL
    while not publisher.depth(queue):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    with publisher.letters(queue) as letters:
        return any(letters.remove(handle) for handle, _ in letters)


def workers(patient: Patient) -> Iterator[Finding]:
    """Which workers answer, and whether each queue of the app's tasks has one."""
    answers = patient.workers
    if not answers:
        text = f"no worker answers within {PATIENCE:g} s"
        yield warning("workers", text, f"start one: taskq worker -A {patient.spec or '…'}")
    for name, answer in answers.items():
        children = answer.get("children") or ()
        text = f"{name} of {answer.get('app')} is {answer.get('state')}, with {len(children)} children"
        yield ok("workers", f"{text}; it consumes {', '.join(answer['queues'])}")
    versions = {str(answer.get("version")) for answer in answers.values()}
    if len(versions) > 1:
        text = f"workers of several versions of taskq answer: {', '.join(sorted(versions))}"
        yield warning("workers", text, "end the rolling update, or restart those that were left behind")
    yield from _unconsumed(patient)


def _unconsumed(patient: Patient) -> Iterator[Finding]:
    consumed = {queue for answer in patient.workers.values() for queue in answer["queues"]}
    for queue in patient.app.queue_names():
        if queue in consumed:
            continue
        tasks = [name for name in patient.app.tasks if patient.app.routes().get(name, patient.settings.default_queue) == queue]
        stats = patient.app.publisher.stats(queue)
        ready = stats.ready if stats is not None else 0
        # Without any worker, that is what is said already.
        if ready or (tasks and consumed):
            text = f"no worker that answers consumes queue {queue!r}: {ready} messages wait, {len(tasks)} tasks use it"
            yield warning("workers", text, f"start one: taskq worker -A {patient.spec or '…'} -Q {queue}")
