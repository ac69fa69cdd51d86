"""An end that cannot take effect for now is waited with; what came back, and whatever else there is, runs meanwhile."""

from __future__ import annotations

import json
import sqlite3
import uuid
from typing import Any

import pytest

from tests import hostile
from tests.support import Stage, eventually


def put(file: sqlite3.Connection, queue: str, headers: dict[str, Any], embed: dict[str, Any], *, redelivered: bool) -> str:
    """A message in the queue, as if it had been held before; returns its id."""
    task_id = str(uuid.uuid4())
    known = {"lang": "py", "task": "add", "id": task_id, "retries": 0, **headers}
    sql = "insert into messages (queue, priority, redelivered, properties, body) values (?, 0, ?, ?, ?)"
    body = json.dumps([[1, 1], {}, embed])
    file.execute(sql, (queue, redelivered, hostile.properties(known), body.encode()))
    return task_id


@pytest.mark.parametrize("marked", [False, True])
def test_what_came_back_runs_while_another_end_waits(sqlite_stage: Stage, marked: bool) -> None:
    client = sqlite_stage.client()
    file = sqlite3.connect(sqlite_stage.broker.removeprefix("sqlite:///"), timeout=10, isolation_level=None)
    client.send_task("add", [0, 0])
    # Somebody else has claimed the chord for good, so that the end of its member asks again and again.
    chord = "insert into chords (id, size, counted, claimant, claimed_until, expires) values ('G', 1, 0, 'x', 9e99, 9e99)"
    file.execute(chord)
    body: dict[str, Any] = {"task": "add", "args": [], "kwargs": {}, "options": {"task_id": "body"}}
    body |= {"subtask_type": None, "immutable": False}
    with sqlite_stage.worker() as worker:
        worker.started()
        put(file, sqlite_stage.queue, {"group": "G", "group_index": 0}, {"chord": body}, redelivered=marked)
        member = "select count(*) from chord_members where chord = 'G'"
        eventually(lambda: file.execute(member).fetchone()[0], "the member has ended")
        before = client.send_task("add", [1, 1])
        assert before.get(timeout=15) == 2
        suspect = put(file, sqlite_stage.queue, {}, {}, redelivered=True)
        if not marked:
            assert client.result(suspect).get(timeout=15) == 2
        else:
            eventually(lambda: worker.logged("task_suspected", task_id=suspect), "it is suspected")
        assert client.send_task("add", [2, 2]).get(timeout=15) == 4
    file.close()
