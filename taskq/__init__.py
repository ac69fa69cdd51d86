"""taskq turns Python function calls into durable messages and runs them in supervised worker processes."""

from taskq.app import TaskQ
from taskq.attempt import Attempt, current_attempt
from taskq.dead import DeadLetter
from taskq.errors import Ignore, MaxRetriesExceeded, Reject, Retry, SoftTimeLimitExceeded, TaskqError, Terminated
from taskq.results.handle import AsyncResult
from taskq.signature import Signature
from taskq.task import Task, task

__all__ = [
    "AsyncResult",
    "Attempt",
    "DeadLetter",
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
    "current_attempt",
    "task",
]
