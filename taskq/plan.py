"""Plans: what a workflow consists of, kept in the result backend for whoever wants to see how far it is."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from taskq.decoding import decoded
from taskq.results.store import ResultStore
from taskq.step import CHAIN, CHORD, GROUP, Step

#: The document that holds the plan of a workflow, under the id of its first task (or group) and that of its result.
PLAN = "taskq-workflow-{}"
#: How long a plan is kept at least, in seconds: nobody knows beforehand how long a workflow takes.
PLAN_SECONDS = 7 * 86_400.0


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of a workflow: a task, or a chain, group or chord of steps; a chord's body is its last step."""

    id: str | None
    task: str
    kind: str | None = None
    steps: list[Plan] = []

    def tasks(self) -> Iterator[Plan]:
        """The tasks in it, in their order."""
        if self.kind is None:
            yield self
        for step in self.steps:
            yield from step.tasks()

    @property
    def result_id(self) -> str | None:
        """The id of what the workflow comes to: the last task, or the group."""
        return self.steps[-1].result_id if self.kind in (CHAIN, CHORD) else self.id


class _Root(msgspec.Struct):
    """Of a result, to which workflow it belongs."""

    root_id: str | None = None


_decode_plan = msgspec.json.Decoder(Plan).decode
_decode_root = msgspec.json.Decoder(_Root).decode


def plan_of(step: Step) -> Plan:
    """The plan of a step that is in order."""
    match step.subtask_type:
        case "chain":
            return Plan(None, step.task, CHAIN, [plan_of(inner) for inner in step.steps])
        case "group":
            return Plan(step.id, step.task, GROUP, [plan_of(inner) for inner in step.steps])
        case "chord":
            return Plan(step.id, step.task, CHORD, [*plan_of(step.header).steps, plan_of(step.body)])
    return Plan(step.id, step.task)


def root_of(step: Step) -> str:
    """The id that the workflow's first tasks name as their root: that of the first task, or of the group that begins."""
    return root_of(step.steps[0]) if step.subtask_type == CHAIN else str(step.id)


def keep(step: Step, store: ResultStore, ttl: float) -> None:
    """Keep the plan of a workflow that is about to begin, for ``ttl`` seconds at least. Raises ``BrokerError``."""
    plan = plan_of(step)
    document = msgspec.json.encode(plan)
    for task_id in dict.fromkeys((root_of(step), plan.result_id)):
        store.keep(PLAN.format(task_id), document, max(ttl, PLAN_SECONDS))


def find(task_id: str, store: ResultStore) -> Plan | None:
    """The plan of the workflow with this root or result, or of which this task, which has ended, is a part.

    Raises ``BrokerError``, and ``MessageError`` for what cannot be read.
    """
    document = store.document(PLAN.format(task_id))
    if document is None:
        [record] = store.fetch([task_id])
        root = None if record is None else decoded(_decode_root, record.meta, f"the result of task {task_id}").root_id
        document = None if root is None else store.document(PLAN.format(root))
    return None if document is None else decoded(_decode_plan, document, f"the plan of the workflow of {task_id}")
