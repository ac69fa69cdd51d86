"""taskq turns Python function calls into durable messages and runs them in supervised worker processes."""

from taskq.app import TaskQ
from taskq.attempt import Attempt, current_attempt
from taskq.cron import crontab
from taskq.dead import DeadLetter
from taskq.errors import Ignore, MaxRetriesExceeded, Reject, Retry, SoftTimeLimitExceeded, TaskqError, Terminated
from taskq.results.group import GroupResult
from taskq.results.handle import AsyncResult
from taskq.signature import Chain, Signature
from taskq.task import Task, task
from taskq.workflow import Chord, Group, chain, chord, group

__all__ = [
    "AsyncResult",
    "Attempt",
    "Chain",
    "Chord",
    "DeadLetter",
    "Group",
    "GroupResult",
    "Ignore",
    "MaxRetriesExceeded",
    "Reject",
    "Retry",
    "Signature",
    "SoftTimeLimitExceeded",
    "Task",
    "TaskQ",
    "TaskqError",
    "Terminated",
    "chain",
    "chord",
    "crontab",
    "current_attempt",
    "group",
    "task",
]
