"""Messages that no task can be run for: none is dropped, none is spun on, none runs code."""

from __future__ import annotations

import json
import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from taskq.errors import TaskFailed
from taskq.message import Message
from tests.support import Stage

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Bomb:
    """What a hostile pickle looks like: unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def call(task: str = "add", args: Any = (1, 2), embed: Any = EMBED, **headers: Any) -> Message:
    """A message as Celery or taskq would make it."""
    task_id = str(uuid.uuid4())
    known = {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None, "retries": 0}
    body = json.dumps([args, {}, embed]).encode()
    return Message(headers={**known, **headers}, body=body, correlation_id=task_id)


def changed(message: Message, **fields: Any) -> Message:
    return msgspec.structs.replace(message, **fields)


def hostile(folder: Path) -> dict[str, Message]:
    """Undecodable messages by what is wrong with them."""
    good = call()
    bomb = pickle.dumps(([1, 2], {"x": Bomb(folder / "exploded")}, EMBED))
    messages = {
        "content type is 'application/x-python-serialize'": changed(
            good, body=bomb, content_type="application/x-python-serialize", content_encoding="binary"
        ),
        "content type is 'application/x-yaml'": changed(
            good, body=b"!!python/object/apply:os.system ['true']", content_type="application/x-yaml"
        ),
        "content type is None": changed(good, content_type=None),
        "JSONDecodeError": changed(good, body=b"[[1, 2"),
        "codec can't decode": changed(good, body=b'[["\xff"], {}, {}]'),
        "unknown encoding": changed(good, content_encoding="no-such-charset"),
        "unknown type marker": call(args=[{"__type__": "os.system", "__value__": "true"}]),
        "not [args, kwargs, embed]": changed(good, body=b'{"task": "add"}'),
        "'id' and 'task' are missing": changed(good, headers={"x": 1}),
        "the headers 'id' and 'task' are": changed(good, headers={**good.headers, "id": 5}),
        "a member of a chord, but": call(embed={**EMBED, "chord": {"task": "add"}}),
        "is no ISO 8601 moment": call(eta="tomorrow"),
        "RecursionError": changed(good, body=b"[" * 50_000),
        "AttributeError": call(args=[{"__type__": "bytes", "__value__": 5}]),
    }
    return {why: message.with_headers(case=why) for why, message in messages.items()}


def test_what_cannot_be_read_is_dead_lettered_with_the_reason(stage: Stage) -> None:
    messages = hostile(stage.folder)
    stage.publish(*messages.values())
    with stage.worker() as worker:
        letters = stage.dead_letters(len(messages))
        for detail, sent in messages.items():
            (letter,) = [letter for letter in letters if letter.headers["case"] == detail]
            assert detail in letter.headers["tq-dead-detail"]
            assert letter.body == sent.body
            assert letter.headers["tq-dead-reason"] == "undecodable"
            assert letter.content_type == sent.content_type
            assert letter.content_encoding == sent.content_encoding
            assert sent.headers.items() <= letter.headers.items()
        assert len(worker.logged("task_dead_lettered", reason="undecodable")) == len(messages)
        assert worker.logged("child_died") == []
        assert stage.client().send_task("add", [1, 2]).get(timeout=15) == 3
        assert worker.stop() == 0
    assert stage.depth() == 0
    assert not (stage.folder / "exploded").exists()


def test_the_result_of_a_dead_letter_is_a_failure(stage: Stage) -> None:
    message = changed(call(), body=b"?")
    stage.publish(message)
    with stage.worker():
        result = stage.client().result(message.headers["id"])
        with pytest.raises(TaskFailed, match="undecodable"):
            result.get(timeout=15)
    assert len(stage.dead_letters(1)) == 1


def test_an_unknown_task_waits_for_a_worker_that_knows_it(stage: Stage) -> None:
    client = stage.client()
    with stage.worker("tests.apps.fewer:app", "--unknown-task-ttl", "20") as old:
        result = client.send_task("add", [1, 2])
        stage.until(lambda: old.logged("task_unknown", task="add", task_id=result.id), "the task is unknown")
        # Meanwhile the old worker is of use.
        assert client.send_task("other").get(timeout=15) == "other"
        with stage.worker("tests.apps.basic:app", "--unknown-task-ttl", "20"):
            old.stop()
            assert result.get(timeout=15) == 3
    assert not stage.depth(f"{stage.queue}.dead")


def test_an_unknown_task_is_dead_lettered_in_the_end(stage: Stage) -> None:
    with stage.worker("tests.apps.fewer:app", "--unknown-task-ttl", "1") as worker:
        result = stage.client().send_task("add", [1, 2])
        with pytest.raises(TaskFailed, match="unknown task"):
            result.get(timeout=15)
        (letter,) = stage.dead_letters(1)
        assert letter.headers["tq-dead-reason"] == "unknown task"
        assert "'add'" in letter.headers["tq-dead-detail"]
        assert letter.headers["tq-dead-at"] - letter.headers["tq-unknown-since"] >= 1.0
        assert len(worker.logged("task_unknown")) == 1
        assert len(worker.logged("task_dead_lettered")) == 1
