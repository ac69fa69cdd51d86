"""``taskq worker``: this process becomes the supervisor, so it must not import the application."""

from __future__ import annotations

import sys
from typing import Any

import click

from taskq.cli.options import app_option, with_settings
from taskq.config import NAMES
from taskq.errors import UnsupportedFeature

#: What one looks for first comes first.
_ORDER = ("queues", "concurrency", "log_level", "log_format", "grace", "max_crashes", "start_method", "broker", "backend")


@click.command()
@app_option(required=True)
@with_settings(*_ORDER, *(name for name in NAMES if name not in _ORDER))
def worker(app_spec: str, settings: dict[str, Any]) -> None:
    """Run the tasks of an application until SIGTERM or SIGINT.

    \b
    Examples:
      taskq worker -A shop.app:app
      taskq worker -A shop.app -Q mail,default -c 4 --log-format json

    The first signal lets running tasks finish within --grace seconds, the second ends them at once; what has not finished
    goes back to its queue. SIGHUP has the worker take new code in while everything goes on; SIGTTIN starts one child more,
    SIGTTOU ends one after its task.

    Each option is also a setting: --max-crashes is TASKQ_MAX_CRASHES, and max_crashes in TaskQ(...).
    """
    if sys.platform == "win32":
        raise UnsupportedFeature("taskq worker needs Linux or macOS: Windows has no fork and no SIGKILL; sending works there")
    from taskq.workers.worker import run_worker

    sys.exit(run_worker(app_spec, settings))
