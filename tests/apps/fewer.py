"""An application that knows none of the tasks of ``basic``: the release before, say."""

from __future__ import annotations

from taskq import TaskQ

app = TaskQ("fewer")


@app.task(name="other")
def other() -> str:
    return "other"
