"""Return values that nobody can keep, and results that nobody should have written."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from taskq.errors import ArgumentRefused, BackendError, ResultTooLarge, TaskFailed
from taskq.results import open_store
from taskq.results.store import Record
from tests.postgres_server import Postgres
from tests.redis_server import Redis
from tests.support import Stage

FAULTY = "tests.apps.faulty:app"


def test_a_value_that_nobody_wants_may_be_anything(stage: Stage) -> None:
    client = stage.client()
    with stage.worker(FAULTY, "-c", "1") as worker:
        client.send_task("unwanted", ignore_result=True)
        assert client.send_task("add", [1, 2]).get(timeout=30) == 3
        assert len(stage.traces("unwanted")) == 1
        assert worker.logged("task_succeeded", task="unwanted")


def test_a_value_that_cannot_be_kept_fails_its_task_once(stage: Stage) -> None:
    client = stage.client()
    with stage.worker(FAULTY, "-c", "1", "--max-result-bytes", "1000") as worker:
        odd, large = client.send_task("odd"), client.send_task("large", [999])
        with pytest.raises(ArgumentRefused, match="JSON cannot carry object faithfully"):
            odd.get(timeout=30)
        with pytest.raises(ResultTooLarge, match="1001 bytes of JSON, over max_result_bytes=1000"):
            large.get(timeout=30)
        assert client.send_task("large", [998]).get(timeout=30) == "x" * 998
        assert (len(stage.traces("odd")), len(stage.traces("large"))) == (1, 2)
        assert worker.logged("task_dead_lettered") == []


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    server: Redis | Postgres = request.getfixturevalue("redis" if request.param == "redis" else "postgres")
    return server.url


def failure(module: str, name: str, *args: Any, **more: Any) -> dict[str, Any]:
    return {"status": "FAILURE", "result": {"exc_type": name, "exc_module": module, "exc_message": list(args), **more}}


class Exits(Exception):
    """An exception of the application's that ends whoever makes one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        sys.exit(3)


class Answers(types.ModuleType):
    """A module that does something when it is asked for what it does not have."""

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)


HOSTILE: dict[str, Any] = {
    "a module that ends who imports it": failure("taskq.__main__", "Error", "x"),
    "a function": failure("os", "_exit", 3),
    "a class that is no exception": failure("subprocess", "Popen", ["touch", "/tmp/never"]),  # never run
    "an exception that ends who makes it": failure(__name__, "Exits", "x"),
    "an exception that ends Python": failure("builtins", "SystemExit", 3),
    "a module that answers": failure("tests.cases.answers", "Error", "x"),
    "no names": {"status": "FAILURE", "result": {}},
    "names that are none": failure(5, ["x"], "y"),  # type: ignore[arg-type]
    "odd arguments": {"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_module": "x", "exc_message": {"a": [1]}}},
    "an odd traceback": {"status": "FAILURE", "result": "text", "traceback": [1]},
    "no result": {"status": "FAILURE"},
    "no status": {"result": 5},
    "a list": [1, 2],
}


@pytest.mark.parametrize("meta", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_result_is_told_and_nothing_else(meta: Any, backend: str, tmp_path: Path) -> None:
    sys.modules["tests.cases.answers"] = Answers("tests.cases.answers")
    try:
        read(json.dumps(meta).encode(), backend, tmp_path)
    finally:
        del sys.modules["tests.cases.answers"]


@pytest.mark.parametrize("meta", [b"", b"{", b"\xff", b"[" * 100_000, b'{"status": "FAILURE", "result": ' + b"[" * 5000, b"5"])
def test_a_result_that_cannot_be_read_is_an_error_of_the_backend(meta: bytes, tmp_path: Path) -> None:
    read(meta, f"sqlite:///{tmp_path}/results.db", tmp_path)


def read(meta: bytes, backend: str, folder: Path) -> None:
    store = open_store(backend, 60.0)
    store.store([Record("hostile", "FAILURE", meta, 1)])
    store.close()
    client = TaskQ("client", broker=f"sqlite:///{folder}/taskq.db", backend=backend)
    try:
        with pytest.raises((TaskFailed, BackendError)):
            client.result("hostile").get(timeout=10)
        for look in ("attempts", "traceback", "status"):
            try:
                getattr(client.result("hostile"), look)
            except BackendError:
                continue
    finally:
        client.result("hostile").forget()
        client.close()
