"""For tests of applications: their tasks really run, in the test's own process, on a broker that is gone afterwards.

Nothing is simulated but the processes and the passing of time: calls are encoded, consumed, executed, retried, dead-lettered
and recorded by the code that does so in production, on the embedded broker. See ``docs/testing.md``.
"""

from taskq.testing.background import worker
from taskq.testing.idempotence import assert_idempotent
from taskq.testing.loop import LimitNotEnforced, Run
from taskq.testing.memory import in_memory
from taskq.testing.worker import Unending, Worker

__all__ = ["LimitNotEnforced", "Run", "Unending", "Worker", "assert_idempotent", "in_memory", "worker"]
