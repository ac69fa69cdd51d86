"""What a caller gets to see of a task that did not succeed."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.errors import DeadLettered, TaskExpired, TaskFailed, TaskRevoked, TimeLimitExceeded, WorkerLost
from taskq.results.handle import rebuilt
from taskq.results.store import Status


def described(name: str, module: str, *args: Any, status: Status = "FAILURE") -> dict[str, Any]:
    result = {"exc_type": name, "exc_module": module, "exc_message": list(args)}
    return {"task_id": "a", "status": status, "result": result, "traceback": "Traceback: …"}


@pytest.mark.parametrize("kind", [DeadLettered, TimeLimitExceeded, WorkerLost])
def test_what_became_of_a_task_is_raised_as_such(kind: type[TaskFailed]) -> None:
    error = rebuilt(described(kind.__name__, "taskq.errors", "crashed: SIGKILL"))
    assert type(error) is kind
    assert isinstance(error, TaskFailed)
    assert str(error) == f"{kind.__name__}: crashed: SIGKILL"
    assert (error.exc_type, error.traceback) == (kind.__name__, "Traceback: …")


@pytest.mark.parametrize(("text", "kind"), [("expired", TaskExpired), ("revoked", TaskRevoked), ("terminated", TaskRevoked)])
def test_revoked_and_expired_tasks_are_written_as_celery_does(text: str, kind: type[TaskFailed]) -> None:
    error = rebuilt(described("TaskRevokedError", "celery.exceptions", text, status="REVOKED"))
    assert type(error) is kind
    assert str(error) == f"{kind.__name__}: {text}"


def test_an_error_comes_back_with_what_happened_in_the_worker() -> None:
    error = rebuilt(described("ValueError", "builtins", "x", 1))
    assert isinstance(error, ValueError)
    assert error.args == ("x", 1)
    assert isinstance(error.__cause__, TaskFailed)
    assert error.__notes__ == ["in the worker:\nTraceback: …"]


@pytest.mark.parametrize(
    ("name", "module"),
    [("NoSuchError", "builtins"), ("Error", "no.such.module"), ("int", "builtins"), ("SystemExit", "builtins")],
)
def test_what_cannot_be_rebuilt_is_told(name: str, module: str) -> None:
    error = rebuilt(described(name, module, "x"))
    assert type(error) is TaskFailed
    assert str(error) == f"{name}: x"


class Model:
    class DoesNotExist(Exception):
        pass


class Coded(Exception):
    def __init__(self, code: int = 0) -> None:
        super().__init__(code)

    def __str__(self) -> str:
        return f"code {self.args[0]}"


def test_a_nested_class_is_found() -> None:
    assert type(rebuilt(described("Model.DoesNotExist", __name__, "x"))) is Model.DoesNotExist


def test_the_text_of_an_exception_is_told_where_its_arguments_do_not() -> None:
    meta = described("HTTPError", "urllib.error")
    meta["result"]["exc_text"] = "HTTP Error 404: gone"
    assert str(rebuilt(meta)) == "HTTPError: HTTP Error 404: gone"
    meta = described("Coded", __name__)
    meta["result"]["exc_text"] = "code 5"
    assert "it read: code 5" in rebuilt(meta).__notes__
    meta["result"]["exc_text"] = "code 0"
    assert rebuilt(meta).__notes__ == ["in the worker:\nTraceback: …"]


def test_no_end_is_hidden_by_a_class_that_cannot_be_made() -> None:
    assert type(rebuilt(described("UnicodeDecodeError", "builtins", "x"))) is TaskFailed
