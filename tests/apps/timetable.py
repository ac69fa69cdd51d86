"""An application with schedules. The environment says how often the first is due (``EVERY``) and how it is kept."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import cast

from taskq import Attempt, TaskQ, crontab
from taskq.schedule import Misfire, Overlap
from tests.apps.traces import pass_gate, trace

app = TaskQ("timetable")


@app.task(name="tick", bind=True)
def tick(attempt: Attempt, gate: str | None = None) -> None:
    """Leaves a trace of which tick it is."""
    trace("tick", id=attempt.id, tick=str(attempt.headers.get("tq-tick")), copy=attempt.headers.get("tq-tick-copy"))
    if gate is not None:
        pass_gate(gate)


app.schedule(
    "seconds",
    timedelta(seconds=float(os.environ.get("EVERY", "1"))),
    tick.s(os.environ.get("GATE")),
    misfire=cast("Misfire", os.environ.get("MISFIRE", "latest")),
    overlap=cast("Overlap", os.environ.get("OVERLAP", "allow")),
)
app.schedule("nightly", crontab(hour=2, minute=30), tick.s(), timezone="Europe/Berlin", jitter=60)
if os.environ.get("PRIORITY"):
    app.schedule("urgent", timedelta(seconds=1), tick.s().set(priority=5))
