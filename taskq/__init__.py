"""taskq turns Python function calls into durable messages and runs them in supervised worker processes."""

from taskq.app import TaskQ
from taskq.attempt import Attempt, current_attempt
from taskq.errors import TaskqError
from taskq.results.handle import AsyncResult
from taskq.signature import Signature
from taskq.task import Task, task

__all__ = ["AsyncResult", "Attempt", "Signature", "Task", "TaskQ", "TaskqError", "current_attempt", "task"]
