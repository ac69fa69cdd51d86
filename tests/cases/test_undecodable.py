"""Messages that cannot be read: each is a dead letter that says so, and its neighbours are served."""

from __future__ import annotations

import json

import pytest

from taskq.message import Message
from tests.support import Stage

EMBED = b'{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'


def message(body: bytes = b"[[1, 2], {}, " + EMBED + b"]", **headers: object) -> Message:
    known = {"lang": "py", "task": "add", "id": "bad", "root_id": "bad", "parent_id": None, "retries": 0, **headers}
    return Message(headers=known, body=body, correlation_id="bad")


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


BAD = {
    "an embed with invalid UTF-8": message(b'[[1, 2], {}, {"callbacks": [{"task": "\xe9"}]}]'),
    "an embed nested without end": message(b'[[1, 2], {}, {"chord": ' + b"[" * 5_000 + b"]" * 5_000 + b"}]"),
    "a body with invalid UTF-8": message(b'[["\xe9"], {}, {}]'),
    "a number without end": message(b"[[" + b"9" * 5_000 + b"], {}, {}]"),
    "a number of another type": message(root_id=5),
    "an index that is none": message(group_index=True),
    "a step that is none": message(json.dumps([[1, 2], {}, {"callbacks": [{"tusk": "add"}]}]).encode()),
    "headers nested deeply": message(x=deep(300)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_is_dead_and_its_neighbours_live(stage: Stage, bad: Message) -> None:
    stage.publish(bad)
    client = stage.client()
    neighbour = client.send_task("add", [1, 2])
    with stage.worker("tests.apps.faulty:app", "-c", "1") as worker:
        assert neighbour.get(timeout=30) == 3
        if bad is BAD["headers nested deeply"]:
            assert client.result("bad").get(timeout=30) == 3
        else:
            [letter] = stage.dead_letters(1)
            assert (letter.headers["tq-dead-reason"], letter.body) == ("undecodable", bad.body)
        assert worker.logged("child_died") == []
        assert worker.stop() == 0
